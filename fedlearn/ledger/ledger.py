"""The write-ahead privacy ledger of one data holder: reserve, then read records and train, then release; or void.

A row is written before what it counts can happen, so whatever a crash interrupts counts as spent. Rows are never
updated or deleted (the file refuses it), and each carries the hash of the one before: a change shows on opening.

* reserve  a release of `event` from `dataset_id` is going to happen; refused when it would pass the budget. In a
  simulation one row may stand for many clients that release the same event
* release  the reservation's vector may leave, any time from now
* void     nothing left, and nothing will: the reservation does not count; only the process that reserved can know that

The lifetime check uses one order of Renyi divergence, fixed before the data set's first release: runs may be chosen
after seeing earlier models, and the filter that allows it (Feldman and Zrnic, arXiv:2008.11193) is for one order.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedlearn.errors import BudgetExceededError, RefusedError
from fedlearn.ledger.books import Booking
from fedlearn.ledger.budget import Budget
from fedlearn.ledger.file import LedgerFile
from fedlearn.ledger.rows import Reservation, Row, SessionState, members_to_bytes, session_state
from fedlearn.privacy.accounting import best_order_of_budget
from fedlearn.privacy.guarantee import PrivacyUnit, rounded_up

__all__ = ["Ledger"]

_NO_FINGERPRINTS: Final[Mapping[int, bytes]] = MappingProxyType({})


class Ledger:
    """One ledger file, opened by one process; several processes may hold the same file.

    Guarantees:
        a reservation that would pass the budget is refused before anything is written;
        what was reserved and not voided counts, whatever happens to the process;
        (round, attempt) of a session only grows, and a session makes at most `max_releases` releases;
        every call that writes returns after the rows are on disk;
        a row that was changed, inserted or taken out is noticed on opening;
        an older copy that was put back is noticed, on opening and while the file is open, if it lacks a reservation.

    Raises:
        RefusedError: the file is not a ledger, was changed, is an older copy, or came without its count.
    """

    def __init__(self, path: Path) -> None:
        self._file = LedgerFile(path)
        self._own: dict[int, int] = {}  # open reservations of this process -> their max_releases

    def close(self) -> None:
        """Close the file. Reservations that are still open count as spent."""
        self._file.close()

    def open_dataset(
        self,
        dataset_id: str | Sequence[str],
        *,
        privacy_unit: PrivacyUnit,
        max_epsilon: float,
        max_delta: float,
        order: float | None,
    ) -> None:
        """Give one data set, or each of several, its lifetime budget in one transaction; who has the same keeps it.

        `order` is the Renyi order of the lifetime check; None takes the best one for a Gaussian release that spends
        exactly the budget. It is fixed here, before the first release.

        Raises:
            RefusedError: a data set has a budget of another unit or size, or another order.
        """
        fixed = best_order_of_budget(max_epsilon, max_delta) if order is None else order
        budget = Budget(str(privacy_unit), max_epsilon, max_delta, fixed)
        with self._file.transaction():
            for name in [dataset_id] if isinstance(dataset_id, str) else dataset_id:
                known = self._file.books.budgets.get(name)
                if known is None:
                    self._file.append("budget", name, budget.to_bytes())
                elif known != budget:
                    raise RefusedError(
                        f'data set "{name}" has a budget of {known}; {budget} was asked; it keeps its first one'
                    )

    def reserve(self, entries: Sequence[Reservation]) -> list[int]:
        """Book releases before any record is read: all of them, or none. Returns the reservations' numbers.

        They are counted before this returns, so that a ledger without them is known to be an older copy.

        Raises:
            BudgetExceededError: one would pass its data set's budget.
            RefusedError: an unknown data set, a (round, attempt) that does not grow, or no release left in the session.
        """
        with self._file.transaction():
            self._check(entries)
            numbers = [self._append(entry) for entry in entries]
        self._file.count()
        self._own.update({number: entry.max_releases for number, entry in zip(numbers, entries, strict=True)})
        return numbers

    def release(self, reservations: Sequence[int], fingerprints: Mapping[int, bytes] = _NO_FINGERPRINTS) -> None:
        """From now on the vectors of these reservations may leave.

        `fingerprints`, for those reservations that have one, are of the records that were read, under this ledger's
        `salt`. They are kept as evidence, and records that are known under another data set's id are refused until the
        holder confirms them.

        Raises:
            RefusedError: one is not an open reservation of this process, its session has no release left, or its
                records are another data set's; none is released, and all stay spent.
        """
        with self._file.transaction():
            for row in map(self._open_row, reservations):
                members = self._file.books.turns.members.get(row.seq, ())
                self._check_releases(row.dataset_id, row.session, members, most=self._own[row.seq])
                self._file.append("release", row, row.body)
                if row.seq in fingerprints:
                    self._check_fingerprint(row.dataset_id, fingerprints[row.seq].hex().encode())
                    self._file.append("fingerprint", row, fingerprints[row.seq].hex().encode())

    def confirm(self, dataset_id: str) -> None:
        """The holder says that this data set may hold records that are known under another id; written down for good.

        Raises:
            RefusedError: the data set has no budget.
        """
        with self._file.transaction():
            self._file.books.budget(dataset_id)
            self._file.append("confirm", dataset_id, b"")

    def salt(self) -> bytes:
        """The secret under which fingerprints of this ledger's data sets are made; 32 bytes, the same for ever.

        Raises:
            RefusedError: the file cannot be read or written.
        """
        return self._file.salt()

    def void(self, reservations: Sequence[int]) -> None:
        """Take back reservations of which no byte left.

        Raises:
            RefusedError: one is released, void, or another process's: nobody can know that nothing left.
        """
        with self._file.transaction():
            for row in map(self._open_row, reservations):
                self._file.append("void", row, row.body)

    def events(self, dataset_id: str | None = None, session: str | None = None) -> list[Booking]:
        """What counts, oldest first, of one data set or session or of all."""
        with self._file.transaction():
            bookings = self._file.books.bookings()
        return [
            booking
            for booking in bookings
            if dataset_id in (None, booking.dataset_id) and session in (None, booking.session)
        ]

    def session(self, session: str, dataset_id: str | None = None) -> SessionState:
        """How far a session came at one data set, or at all of this ledger together."""
        with self._file.transaction():
            return session_state(self._file.rows_of_session(session, dataset_id))

    def releases(self, dataset_id: str, session: str) -> int:
        """How many releases the data set made in the session: its participations."""
        with self._file.transaction():
            return self._file.books.releases[dataset_id, session]

    def spent(self, dataset_id: str) -> tuple[float, float]:
        """Epsilon spent at the budget's delta: at the fixed order, which the budget bounds, and at the best order.

        Raises:
            RefusedError: the data set is unknown.
        """
        with self._file.transaction():
            budget = self._file.books.budget(dataset_id)
            events = self._file.books.spent[dataset_id]
            return budget.spent_by(events), budget.estimate_of(events)

    def verify_chain(self) -> int:
        """Read every row again and check its hash; returns the number of rows.

        Raises:
            RefusedError: the first row that was changed, removed or inserted.
        """
        self._file.reread()
        with self._file.transaction():
            return self._file.books.seq

    def _check(self, entries: Sequence[Reservation]) -> None:
        books = self._file.books
        latest: dict[tuple[str, str], tuple[int, int]] = {}
        asked: dict[str, Counter[bytes]] = defaultdict(Counter)
        for entry in entries:
            key = (entry.dataset_id, entry.session)
            before = latest.get(key, books.latest.get(key, (-1, -1)))
            if (entry.round, entry.attempt) <= before:
                raise RefusedError(
                    f"round {entry.round}, attempt {entry.attempt} of session {entry.session} comes after round "
                    f"{before[0]}, attempt {before[1]}; a pair is used once and only grows"
                )
            latest[key] = (entry.round, entry.attempt)
            self._check_kind(entry, alone=len(entries) == 1)
            self._check_releases(*key, entry.members, most=entry.max_releases)
            asked[entry.dataset_id][entry.event] += self._counts_more(entry)
        for dataset_id, counts in asked.items():
            self._check_budget(dataset_id, self._file.books.spent[dataset_id] + counts)

    def _check_kind(self, entry: Reservation, *, alone: bool) -> None:
        """An account is one client's or common to many, for good; a common one is booked by one reservation a call."""
        books, account = self._file.books, entry.dataset_id
        common = account in books.turns.accounts
        if common != bool(entry.members) and (common or books.spent[account]):
            whose = "common to many clients" if common else "one client's"
            raise RefusedError(f'account "{account}" is {whose}; a reservation of the other kind is refused')
        if entry.members and not alone:
            raise AssertionError("reservations of a common account are made one by one")

    def _counts_more(self, entry: Reservation) -> int:
        """How often more its event counts with this reservation: once, unless others of its account are ahead."""
        if not entry.members:
            return 1
        books, account = self._file.books, entry.dataset_id
        most = books.turns.most_booked(entry.members, account=account, event=entry.event)
        return int(most >= books.spent[account][entry.event])

    def _append(self, entry: Reservation) -> int:
        number = self._file.append("reserve", entry, entry.event)
        if entry.members:
            self._file.append("members", self._file.books.reservations[number], members_to_bytes(entry.members))
        return number

    def _check_releases(self, dataset_id: str, session: str, members: Sequence[int], *, most: int) -> None:
        books = self._file.books
        made = (
            books.turns.most_released(members, account=dataset_id, session=session)
            if members
            else books.releases[dataset_id, session]
        )
        if made >= most:
            raise RefusedError(f'data set "{dataset_id}" made {made} releases in session {session}; it may make {most}')

    def _check_budget(self, dataset_id: str, counts: Counter[bytes]) -> None:
        budget = self._file.books.budget(dataset_id)
        epsilon = budget.spent_by(counts)
        if not epsilon <= budget.max_epsilon:
            raise BudgetExceededError(
                f'data set "{dataset_id}": this release would bring epsilon to {rounded_up(epsilon, 4)}; its budget is '
                f"{budget}; no record was read"
            )

    def _check_fingerprint(self, dataset_id: str, fingerprint: bytes) -> None:
        books = self._file.books
        others = sorted(books.fingerprints[fingerprint] - {dataset_id})
        if others and dataset_id not in books.confirmed:
            raise RefusedError(
                f'data set "{dataset_id}" holds records that are known as "{others[0]}" and spent there; if that is '
                f"right, say so with fedlearn client ledger confirm {dataset_id}"
            )

    def _open_row(self, reservation: int) -> Row:
        books = self._file.books
        if reservation not in self._own or reservation in books.released or reservation not in books.reservations:
            raise RefusedError(f"reservation {reservation} is not an open one of this process; it stays as it is")
        return books.reservations[reservation]
