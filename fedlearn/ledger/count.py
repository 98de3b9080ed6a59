"""How far a ledger came, in a second file beside it: an older copy of the ledger is behind and shows.

`<ledger>.count` is canonical JSON {"entries": rows, "head": hash of the last one in hex, "type": ...}. It is written
after the rows are on disk: a crash between the two leaves it behind the ledger, which is no error, and never before it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import write_whole

__all__ = ["Count", "check_count", "count_path", "read_count", "write_count"]

_TYPE: Final = "fedlearn/v1/ledger-count"


@dataclass(frozen=True, slots=True)
class Count:
    """A ledger had so many rows, the last one of this hash."""

    entries: int
    head: bytes

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json({"entries": self.entries, "head": self.head.hex(), "type": _TYPE})


def count_path(ledger: Path) -> Path:
    """Where a ledger's count stands."""
    return ledger.with_name(f"{ledger.name}.count")


def read_count(ledger: Path) -> Count | None:
    """What was counted, or None where no count was ever written.

    Raises:
        RefusedError: the file cannot be read or is damaged.
    """
    path = count_path(ledger)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read ({error.strerror}); nothing is released") from None
    try:
        values = read_json(content, what="the count")
        count = Count(values["entries"], bytes.fromhex(values["head"]))
        whole = type(count.entries) is int and len(count.head) == 32 and count.to_bytes() == content
    except (ConfigError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise RefusedError(
            f"{path}: expected the count of {ledger.name}; it is damaged: bring back both files together"
        )
    return count


def write_count(ledger: Path, count: Count) -> None:
    """Replace what was counted.

    Raises:
        RefusedError: it cannot be written.
    """
    path = count_path(ledger)
    try:
        write_whole(path, count.to_bytes(), mode=0o600)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written ({error.strerror}); nothing is released") from None


def check_count(ledger: Path, count: Count | None, *, entries: int, head_then: bytes) -> None:
    """Whether a ledger of so many rows goes on from what was counted; `head_then` is the hash of row `count.entries`.

    Raises:
        RefusedError: it is an older copy, one that went on differently, or came without its count.
    """
    if count is None:
        if entries:
            raise RefusedError(
                f"{ledger}: {entries} rows, and no {count_path(ledger).name} beside it that would show an older copy; "
                "bring back both files together"
            )
    elif entries < count.entries:
        raise RefusedError(
            f"{ledger}: this is an older copy, with {entries} of the {count.entries} rows that were booked; put the "
            "newer file back, for what is missing counts as spent"
        )
    elif head_then != count.head:
        raise RefusedError(
            f"{ledger}: row {count.entries} is not the one that was booked; this is another ledger than "
            f"{count_path(ledger).name} belongs to: bring back both files together"
        )
