"""How often local work failed in a simulation: a model that raises, records of which none gives a gradient.

A data holder hides such a failure behind zeros and noise, and only its own log knows. A simulation protects nobody, and
whoever runs it must not take zeros and noise for something that was learned.
"""

import json
import os
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedlearn.errors import RunFailedError
from fedlearn.run.checkpoint import RunFolder
from fedlearn.wording import one_line

__all__ = ["LocalWork", "Tally"]

_FILE: Final = "local_work.jsonl"
_LONGEST_REASON: Final = 300
_PACKAGE: Final = Path(__file__).parents[1]
_ENOUGH: Final = 64  # clients: where so many fail and nobody works, the others need not be asked


class Tally:
    """Counts failures, also those in processes that are forked after it was made."""

    def __init__(self) -> None:
        # An appended line is whole, whoever else writes, and no lock is left behind by a worker that is killed.
        self._lines = tempfile.TemporaryFile("ab+", buffering=0)  # noqa: SIM115 (for as long as this is)
        self._read = 0

    def add(self, error: Exception) -> None:
        """Count one client's failure."""
        self.add_reason(_reason_of(error))

    def add_reason(self, reason: str) -> None:
        """Count one that failed elsewhere."""
        self._lines.write(json.dumps(reason, allow_nan=False).encode() + b"\n")

    def take(self) -> list[str]:
        """The reasons of all failures since the last time."""
        size = os.fstat(self._lines.fileno()).st_size
        fresh = os.pread(self._lines.fileno(), size - self._read, self._read)
        self._read = size
        return [json.loads(line) for line in fresh.splitlines()]

    def note(self, folder: Path, *, round_number: int, clients: int) -> None:
        """Write down in a run folder what became of the local work of so many clients; nothing where there was none."""
        reasons = self.take()
        if clients:
            line = {
                "round": round_number,
                "clients": clients,
                "failed": len(reasons),
                "why": reasons[0] if reasons else None,
            }
            RunFolder(folder).append(_FILE, line)


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What became of all local work of a simulation; `why` is the reason of the first failure."""

    clients: int
    failed: int
    why: str | None

    @classmethod
    def of(cls, folder: RunFolder) -> Self:
        """As a run folder says, whose run may go on."""
        lines = folder.lines(_FILE)
        why = next((line["why"] for line in lines if line["failed"]), None)
        return cls(sum(line["clients"] for line in lines), sum(line["failed"] for line in lines), why)

    @property
    def sentence(self) -> str | None:
        """What is said of it; None where nothing failed."""
        if not self.failed:
            return None
        return (
            f"Local work failed {self.failed} of {self.clients} times; zeros were taken instead. The first reason: "
            f"{self.why}"
        )

    def refuse_if_all_failed(self, *, ended: bool) -> None:
        """End a run in which nobody learned anything; one that goes on, once enough clients were asked.

        Raises:
            RunFailedError: no client could train.
        """
        if self.clients and self.failed >= self.clients and (ended or self.clients >= _ENOUGH):
            raise RunFailedError(
                f"no client could train: local work failed {self.failed} of {self.clients} times, so the model is "
                f"nothing but its start and noise; the first reason: {self.why}"
            )


def _reason_of(error: Exception) -> str:
    """Type and words of an exception, and its place outside of fedlearn, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = bool(frames) and not Path(frames[-1].filename).is_relative_to(_PACKAGE)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if theirs else ""
    return one_line(f"{type(error).__name__}: {error}"[:_LONGEST_REASON] + place)
