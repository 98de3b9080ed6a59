"""One line of an examination."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from fedlearn.errors import FedlearnError

__all__ = ["Check", "Look", "error", "looked", "ok", "warning"]

Status = Literal["ok", "warning", "error"]
# What finds the lines of one theme; a FedlearnError that it raises is its last line.
Look = Callable[[], "Iterable[Check]"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was seen in one sentence, and what to do about it; no remedy where all is well."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """As JSON has it."""
        return asdict(self)


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, "ok", detail)


def warning(name: str, detail: str, remedy: str) -> Check:
    """It works, and may not for long, or not as well as it could."""
    return Check(name, "warning", detail, remedy)


def error(name: str, detail: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, "error", detail, remedy)


def looked(name: str, remedy: str, look: Look) -> Iterator[Check]:
    """The lines of `look`; what cannot be looked at is an error with that remedy."""
    try:
        yield from look()
    except FedlearnError as problem:
        yield error(name, str(problem), remedy)
    except OSError as problem:
        yield error(name, f"{problem.filename or 'a file'}: {problem.strerror}", remedy)
