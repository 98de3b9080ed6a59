"""What the rows of a ledger say and add up to; nothing here knows of the file."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from fedlearn.privacy.accounting import Event, epsilon_at_order, epsilon_of

__all__ = ["GENESIS", "Booking", "Books", "Budget", "Kind", "Reservation", "Row", "SessionState", "session_state"]

GENESIS = bytes(32)  # the head of a chain without rows

_ROW_LABEL = b"fedlearn/ledger/v1/row"
_SESSION_ROW_LABEL = b"fedlearn/ledger/v1/session-row"
_SESSION_LABEL = b"fedlearn/ledger/v1/session"

Kind = Literal["reserve", "release", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A release that is about to be prepared. `event` is canonical; `max_releases` bounds this data set's session."""

    dataset_id: str
    session: str
    round: int
    attempt: int
    event: bytes
    max_releases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A reservation that counts: released, or reserved and not voided."""

    reservation: int
    dataset_id: str
    session: str
    round: int
    attempt: int
    event: Event
    released: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What one session booked: the number of its rows, the head of the chain over them alone, and its releases.

    head_0 is 32 zero bytes and head_i = SHA-256(label | head_{i-1} | hash of row i), over what the rows say: neither
    their number in the file nor the hash of the row before enters, so nothing here tells of the holder's other runs.
    """

    entries: int
    head: bytes
    releases: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The lifetime budget of one data set, and the one order of Renyi divergence at which it is checked."""

    privacy_unit: str
    max_epsilon: float
    max_delta: float
    order: float

    def __str__(self) -> str:
        return f"epsilon {self.max_epsilon} at delta {self.max_delta} per {self.privacy_unit} (order {self.order:g})"

    def spent_by(self, events: Counter[bytes]) -> float:
        """Epsilon at the fixed order: what the budget bounds."""
        return _at_fixed_order(_history(events), self)

    def estimate_of(self, events: Counter[bytes]) -> float:
        """Epsilon at the best order: right for runs that were fixed beforehand, an estimate for others."""
        return _at_best_order(_history(events), self)


class Row(NamedTuple):
    """A row as it is stored, without its hashes."""

    seq: int
    dataset_id: str
    kind: Kind
    reservation: int
    session: str
    round: int
    attempt: int
    event: bytes

    def hash_after(self, previous: bytes) -> bytes:
        """The row's hash in the chain of the whole file."""
        numbers = (self.seq, self.reservation, self.round, self.attempt)
        parts = [previous, *(number.to_bytes(8, "big") for number in numbers)]
        return _hash(
            _ROW_LABEL, *parts, self.dataset_id.encode(), self.kind.encode(), self.session.encode(), self.event
        )

    def hash_in_session(self, previous: bytes) -> bytes:
        """The head of the session's own chain after this row."""
        numbers = (number.to_bytes(8, "big") for number in (self.round, self.attempt))
        names = (name.encode() for name in (self.dataset_id, self.kind, self.session))
        return _hash(_SESSION_LABEL, previous, _hash(_SESSION_ROW_LABEL, *numbers, *names, self.event))


def session_state(rows: Iterable[Row]) -> SessionState:
    """The state of a session from its rows, oldest first; releases are those of the data set that has most."""
    entries, head, releases = 0, GENESIS, Counter[str]()
    for row in rows:
        entries, head = entries + 1, row.hash_in_session(head)
        releases[row.dataset_id] += row.kind == "release"
    return SessionState(entries=entries, head=head, releases=max(releases.values(), default=0))


@dataclass(slots=True)
class Books:
    """What the rows read so far add up to; derived, and brought up to date inside every transaction."""

    seq: int = 0
    head: bytes = GENESIS
    reservations: dict[int, Row] = field(default_factory=dict)  # all that count
    released: set[int] = field(default_factory=set)
    spent: dict[str, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    latest: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    releases: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, row: Row, digest: bytes) -> None:
        """Take in the next row, whose hash is `digest`."""
        key = (row.dataset_id, row.session)
        if row.kind == "reserve":
            self.reservations[row.seq] = row
            self.spent[row.dataset_id][row.event] += 1
            self.latest[key] = (row.round, row.attempt)
        elif row.kind == "release":
            self.released.add(row.reservation)
            self.releases[key] += 1
        else:
            del self.reservations[row.reservation]
            self.spent[row.dataset_id][row.event] -= 1
        self.seq, self.head = row.seq, digest

    def bookings(self) -> list[Booking]:
        """What counts, oldest first."""
        return [
            Booking(
                reservation=row.seq,
                dataset_id=row.dataset_id,
                session=row.session,
                round=row.round,
                attempt=row.attempt,
                event=_event(row.event),
                released=row.seq in self.released,
            )
            for row in self.reservations.values()
        ]


_History = tuple[tuple[bytes, int], ...]  # events and how often each counts


def _history(events: Counter[bytes]) -> _History:
    return tuple(sorted(events.items()))


@lru_cache(maxsize=4096)
def _event(body: bytes) -> Event:
    return Event.from_bytes(body)


@lru_cache(maxsize=4096)
def _at_fixed_order(history: _History, budget: Budget) -> float:
    return epsilon_at_order(
        [(_event(body), times) for body, times in history],
        delta=budget.max_delta,
        epsilon_ceiling=budget.max_epsilon,
        order=budget.order,
    )


@lru_cache(maxsize=4096)
def _at_best_order(history: _History, budget: Budget) -> float:
    events = [(_event(body), times) for body, times in history]
    return epsilon_of(events, delta=budget.max_delta, epsilon_ceiling=budget.max_epsilon)


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
