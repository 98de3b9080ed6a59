"""Why a run failed, carried in its folder from the process that knows to the one that tells the user."""

import fedlearn.errors
from fedlearn.errors import FedlearnError
from fedlearn.run.checkpoint import RunFolder

__all__ = ["FAILURE_FILE", "forget_failure", "raise_failure", "record_failure", "why_failed"]

FAILURE_FILE = "failure.jsonl"


def record_failure(folder: RunFolder, error: FedlearnError) -> None:
    """Write down the sentence of `error` and of which kind it is."""
    folder.append(FAILURE_FILE, {"kind": type(error).__name__, "sentence": str(error)})


def forget_failure(folder: RunFolder) -> None:
    """Drop what an earlier attempt at the same run wrote down."""
    folder.file(FAILURE_FILE).unlink(missing_ok=True)


def raise_failure(folder: RunFolder) -> None:
    """Do nothing where nothing failed.

    Raises:
        FedlearnError: of the kind that was recorded first, with its sentence.
    """
    for failure in folder.lines(FAILURE_FILE):
        kind = failure["kind"] if failure["kind"] in fedlearn.errors.__all__ else "RunFailedError"
        raise getattr(fedlearn.errors, kind)(failure["sentence"])


def why_failed(folder: RunFolder) -> str:
    """The sentence that was recorded first; empty where nothing failed."""
    return next((str(failure.get("sentence", "")) for failure in folder.lines(FAILURE_FILE)), "")
