"""What the rows of a ledger add up to; nothing here knows of the file."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlearn.errors import ConfigError, RefusedError
from fedlearn.ledger.budget import Budget, event_of
from fedlearn.ledger.rows import GENESIS, Row, members_of
from fedlearn.ledger.turns import Turns
from fedlearn.privacy.accounting import Event

__all__ = ["Booking", "Books"]


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


@dataclass(slots=True)
class Books:
    """The sums over all rows up to `seq`, whose hash is `head`. A row is added once; nothing is ever taken out.

    Of a common account `spent` and `releases` are those of the member that has most.
    """

    seq: int = 0
    head: bytes = GENESIS
    budgets: dict[str, Budget] = field(default_factory=dict)
    reservations: dict[int, Row] = field(default_factory=dict)  # all that count
    released: set[int] = field(default_factory=set)
    spent: dict[str, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    latest: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    releases: Counter[tuple[str, str]] = field(default_factory=Counter)
    fingerprints: dict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))  # whose records they are of
    confirmed: set[str] = field(default_factory=set)
    turns: Turns = field(default_factory=Turns)

    def follow(self, stored: Iterable[tuple[Any, ...]], *, file: Path) -> None:
        """Take in the rows after the last one, as they are stored in `file`.

        Raises:
            RefusedError: the first row that was changed, inserted, or follows one that was taken out.
        """
        for *values, previous, digest in stored:
            row = Row(*values)
            holds = row.follows(self.seq, self.head, previous=previous, digest=digest)
            try:
                if holds:
                    self.add(row, digest)
            except (ConfigError, KeyError):  # its hash fits, and it says what no ledger writes
                holds = False
            if not holds:
                raise RefusedError(f"{file}: row {row.seq} of the ledger is not what was written")

    def add(self, row: Row, digest: bytes) -> None:
        """Take in the next row, whose hash is `digest`.

        Raises:
            ConfigError: its body is not what its kind asks for.
            KeyError: it is about a reservation that is not open, or a data set that has its budget.
        """
        key = (row.dataset_id, row.session)
        if row.kind == "budget":
            if row.dataset_id in self.budgets:
                raise KeyError(row.dataset_id)
            self.budgets[row.dataset_id] = Budget.from_bytes(row.body)
        elif row.kind == "reserve":
            event_of(row.body)
            self.reservations[row.seq] = row
            self.spent[row.dataset_id][row.body] += 1
            self.latest[key] = (row.round, row.attempt)
        elif row.kind == "members":
            self._share(self._open(row.reservation), members_of(row.body))
        elif row.kind == "release":
            self._release(self._open(row.reservation))
        elif row.kind == "void":
            self._void(self._open(row.reservation))
        elif row.kind == "fingerprint":
            self.fingerprints[row.body].add(row.dataset_id)
        elif row.kind == "confirm":
            self.confirmed.add(row.dataset_id)
        self.seq, self.head = row.seq, digest

    def budget(self, dataset_id: str) -> Budget:
        """The data set's budget.

        Raises:
            RefusedError: it has none.
        """
        if dataset_id not in self.budgets:
            raise RefusedError(f'data set "{dataset_id}" has no budget in the ledger; open it with one first')
        return self.budgets[dataset_id]

    def _share(self, reserved: Row, members: tuple[int, ...]) -> None:
        if reserved.seq in self.turns.members:
            raise KeyError(reserved.seq)
        most = self.turns.book(reserved.seq, members, account=reserved.dataset_id, event=reserved.body)
        self.spent[reserved.dataset_id][reserved.body] = most

    def _release(self, reserved: Row) -> None:
        key = (reserved.dataset_id, reserved.session)
        self.released.add(reserved.seq)
        if reserved.seq in self.turns.members:
            most = self.turns.release(reserved.seq, account=key[0], session=key[1])
            self.releases[key] = max(self.releases[key], most)
        else:
            self.releases[key] += 1

    def _void(self, reserved: Row) -> None:
        self.reservations.pop(reserved.seq)
        account, event = reserved.dataset_id, reserved.body
        if reserved.seq in self.turns.members:
            self.spent[account][event] = self.turns.unbook(reserved.seq, account=account, event=event)
        else:
            self.spent[account][event] -= 1

    def _open(self, reservation: int) -> Row:
        if reservation in self.released:
            raise KeyError(reservation)
        return self.reservations[reservation]

    def bookings(self) -> list[Booking]:
        """What counts, oldest first."""
        return [
            Booking(
                reservation=row.seq,
                dataset_id=row.dataset_id,
                session=row.session,
                round=row.round,
                attempt=row.attempt,
                event=event_of(row.body),
                released=row.seq in self.released,
            )
            for row in self.reservations.values()
        ]
