"""The rows of a ledger as they are stored: what each says, and the chains of hashes over them.

A row is (seq, dataset_id, kind, reservation, session, round, attempt, body, prev_hash, hash). The body is ASCII:

* budget       the lifetime budget of a data set, fixed before its first release
* reserve      the event that is going to be released
* members      the clients that the reservation is for, where they share an account (`ledger.turns`)
* release      the reservation's event: its vector may leave, any time from now
* void         the reservation's event: nothing left, and nothing will
* fingerprint  of the records that the reservation's release was made from, in hex: evidence
* confirm      the holder says that this data set may hold records that are known under another id; no body

The salt of the fingerprints stands beside the rows, so that the rows can be shown: without it nobody can try records.

Labels of hashes hold the version: other bytes, another label.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.errors import ConfigError

__all__ = [
    "COORDINATOR",
    "GENESIS",
    "INSERT",
    "SCHEMA",
    "SELECT",
    "Kind",
    "Reservation",
    "Row",
    "SessionState",
    "events_hash",
    "members_of",
    "members_to_bytes",
    "session_state",
]

Kind = Literal["budget", "reserve", "members", "release", "void", "fingerprint", "confirm"]
_KINDS: Final = frozenset(get_args(Kind))

# The account of a coordinator that adds noise itself; no holder's data set can have this name.
COORDINATOR: Final = "@coordinator"

_ALONE: Final = -1  # stands for the one client of an account that several do not share

GENESIS: Final = bytes(32)  # the head of a chain without rows

_ROW_LABEL: Final = b"fedlearn/ledger/v1/row"
_SESSION_ROW_LABEL: Final = b"fedlearn/ledger/v1/session-row"
_SESSION_LABEL: Final = b"fedlearn/ledger/v1/session"
_EVENTS_LABEL: Final = b"fedlearn/ledger/v1/events"

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, dataset_id TEXT NOT NULL, kind TEXT NOT NULL,
    reservation INTEGER NOT NULL, session TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    body BLOB NOT NULL, prev_hash BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS salts (number INTEGER PRIMARY KEY CHECK (number = 1), salt BLOB NOT NULL) STRICT;
""" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END;\n"
    for table in ("entries", "salts")
    for verb in ("UPDATE", "DELETE")
)
SELECT: Final = (
    "SELECT seq, dataset_id, kind, reservation, session, round, attempt, body, prev_hash, hash FROM entries "
)
INSERT: Final = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A release that is about to be prepared. `event` is canonical; `max_releases` bounds this data set's session.

    `members`, increasing numbers, makes it one row for many clients of a simulation that each release the same event;
    `dataset_id` is then their common account, which stands for whichever of them released most. Without: one data set.
    """

    dataset_id: str
    session: str
    round: int
    attempt: int
    event: bytes
    max_releases: int
    members: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What one session booked: the number of its rows, the head of the chain over them alone, and its releases.

    Rows are those that reserve, release and void. head_0 is 32 zero bytes and head_i = SHA-256(label | head_{i-1} |
    hash of row i), over what the rows say: neither their number in the file nor the hash of the row before enters, so
    nothing here tells of the holder's other runs.
    """

    entries: int
    head: bytes
    releases: int
    events_hash: bytes  # `events_hash` of the released events


class Row(NamedTuple):
    """A row without its hashes. `reservation` is the number of the row that reserved; a row about none has its own."""

    seq: int
    dataset_id: str
    kind: Kind
    reservation: int
    session: str
    round: int
    attempt: int
    body: bytes

    def hash_after(self, previous: bytes) -> bytes:
        """The row's hash in the chain of the whole file."""
        numbers = (number.to_bytes(8, "big") for number in (self.seq, self.reservation, self.round, self.attempt))
        return _hash(_ROW_LABEL, previous, *numbers, *self._names(), self.body)

    def follows(self, seq: int, head: bytes, *, previous: object, digest: object) -> bool:
        """Whether this row, stored with these two hashes, is what was written after row `seq` of hash `head`."""
        try:
            return self.kind in _KINDS and self.seq == seq + 1 and previous == head and digest == self.hash_after(head)
        except (AttributeError, OverflowError, TypeError, ValueError):  # a value of another type than was written
            return False

    def hash_in_session(self, previous: bytes) -> bytes:
        """The head of the session's own chain after this row."""
        numbers = (number.to_bytes(8, "big") for number in (self.round, self.attempt))
        return _hash(_SESSION_LABEL, previous, _hash(_SESSION_ROW_LABEL, *numbers, *self._names(), self.body))

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {**self._asdict(), "body": self.body.decode("ascii")}

    def _names(self) -> tuple[bytes, bytes, bytes]:
        return self.dataset_id.encode(), self.kind.encode(), self.session.encode()


def session_state(rows: Iterable[Row]) -> SessionState:
    """The state of a session from all its rows, oldest first; releases are those of the client that has most.

    Where holders' rows are among them, what a coordinator promised is nobody's participation and not counted.
    """
    entries, head, releases = 0, GENESIS, Counter[tuple[str, int]]()
    events: dict[str, set[bytes]] = {}
    members: dict[int, tuple[int, ...]] = {}
    for row in rows:
        if row.kind == "members":
            members[row.reservation] = members_of(row.body)
        elif row.kind in ("reserve", "release", "void"):
            entries, head = entries + 1, row.hash_in_session(head)
        if row.kind == "release":
            releases.update((row.dataset_id, member) for member in members.get(row.reservation, (_ALONE,)))
            events.setdefault(row.dataset_id, set()).add(row.body)
    if any(name != COORDINATOR for name in events):
        releases.pop((COORDINATOR, _ALONE), None)
        events.pop(COORDINATOR, None)
    return SessionState(
        entries=entries,
        head=head,
        releases=max(releases.values(), default=0),
        events_hash=events_hash(event for bodies in events.values() for event in bodies),
    )


def events_hash(events: Iterable[bytes]) -> bytes:
    """32 bytes by which a certificate's event is compared with a ledger's: of the distinct canonical `events`, sorted.

    A run that was booked as configured has one event, however often it was released; none gives a hash too.
    """
    return _hash(_EVENTS_LABEL, *sorted(set(events)))


def members_to_bytes(members: tuple[int, ...]) -> bytes:
    """The body of a row that says for whom a reservation is: a canonical JSON list."""
    return canonical_json(list(members))


def members_of(body: bytes) -> tuple[int, ...]:
    """The members in such a body, increasing.

    Raises:
        ConfigError: it is not one.
    """
    try:
        members = tuple(read_json(body, what="the members"))
        valid = all(type(member) is int and member >= 0 for member in members) and members == tuple(
            sorted(set(members))
        )
    except (ConfigError, TypeError):
        valid = False
    if not valid or members_to_bytes(members) != body:
        raise ConfigError(f"the members of a reservation are {body[:80]!r}; expected increasing numbers")
    return members


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
