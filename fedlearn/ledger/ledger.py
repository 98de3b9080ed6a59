"""The write-ahead privacy ledger of one data holder: reserve, then read records and train, then release; or void.

A row is written before what it counts can happen, so whatever a crash interrupts counts as spent. Rows are never
updated or deleted (the file refuses it), and each carries the hash of the one before: a change shows on opening.

* reserve  a release of `event` from `dataset_id` is going to happen; refused when it would pass the budget
* release  the reservation's vector may leave, any time from now
* void     nothing left, and nothing will: the reservation does not count; only the process that reserved can know that

The lifetime check uses one order of Renyi divergence, fixed before the data set's first release: runs may be chosen
after seeing earlier models, and the filter that allows it (Feldman and Zrnic, arXiv:2008.11193) is for one order.
"""

import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlearn.durable import open_database
from fedlearn.errors import BudgetExceededError, RefusedError
from fedlearn.ledger.books import Booking, Books
from fedlearn.ledger.budget import Budget
from fedlearn.ledger.count import Count, check_count, read_count, write_count
from fedlearn.ledger.rows import GENESIS, INSERT, SCHEMA, SELECT, Kind, Reservation, Row, SessionState, session_state
from fedlearn.privacy.accounting import best_order_of_budget
from fedlearn.privacy.guarantee import PrivacyUnit, rounded_up

__all__ = ["Ledger"]

_NEW_ROWS = SELECT + "WHERE seq > ? ORDER BY seq"
_ROWS_OF_SESSION = SELECT + "WHERE session = ? AND dataset_id = ifnull(?, dataset_id) ORDER BY seq"


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
        self._path = path
        self._lock = threading.RLock()
        self._closed = False
        self._own: dict[int, int] = {}  # open reservations of this process -> their max_releases
        self._books = Books()
        self._begin_count()
        try:
            self._database = open_database(path, SCHEMA)
        except sqlite3.DatabaseError as error:
            raise RefusedError(f"{path}: the ledger cannot be opened ({error}); nothing is released") from None
        try:
            self._count()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the file; a second time is nothing. Reservations that are still open count as spent."""
        if not self._closed:
            with suppress(RefusedError):  # a count that lags is no error
                self._count()
            self._database.close()
        self._closed = True

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
        with self._transaction():
            for name in [dataset_id] if isinstance(dataset_id, str) else dataset_id:
                known = self._books.budgets.get(name)
                if known is None:
                    self._append("budget", name, budget.to_bytes())
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
        with self._transaction():
            self._check(entries)
            numbers = [self._append("reserve", entry, entry.event) for entry in entries]
        self._count()
        self._own.update({number: entry.max_releases for number, entry in zip(numbers, entries, strict=True)})
        return numbers

    def release(self, reservations: Sequence[int]) -> None:
        """From now on the vectors of these reservations may leave.

        Raises:
            RefusedError: one is not an open reservation of this process, or its session has no release left.
        """
        with self._transaction():
            for row in map(self._open_row, reservations):
                self._check_releases(row.dataset_id, row.session, most=self._own[row.seq])
                self._append("release", row, row.body)

    def void(self, reservations: Sequence[int]) -> None:
        """Take back reservations of which no byte left.

        Raises:
            RefusedError: one is released, void, or another process's: nobody can know that nothing left.
        """
        with self._transaction():
            for row in map(self._open_row, reservations):
                self._append("void", row, row.body)

    def events(self, dataset_id: str | None = None, session: str | None = None) -> list[Booking]:
        """What counts, oldest first, of one data set or session or of all."""
        with self._transaction():
            bookings = self._books.bookings()
        return [
            booking
            for booking in bookings
            if dataset_id in (None, booking.dataset_id) and session in (None, booking.session)
        ]

    def session(self, session: str, dataset_id: str | None = None) -> SessionState:
        """How far a session came at one data set, or at all of this ledger together."""
        with self._transaction():
            rows = self._database.execute(_ROWS_OF_SESSION, (session, dataset_id))
            return session_state(Row(*values) for *values, _, _ in rows)

    def releases(self, dataset_id: str, session: str) -> int:
        """How many releases the data set made in the session: its participations."""
        with self._transaction():
            return self._books.releases[dataset_id, session]

    def spent(self, dataset_id: str) -> tuple[float, float]:
        """Epsilon spent at the budget's delta: at the fixed order, which the budget bounds, and at the best order.

        Raises:
            RefusedError: the data set is unknown.
        """
        with self._transaction():
            budget = self._books.budget(dataset_id)
            events = self._books.spent[dataset_id]
            return budget.spent_by(events), budget.estimate_of(events)

    def verify_chain(self) -> int:
        """Read every row again and check its hash; returns the number of rows.

        Raises:
            RefusedError: the first row that was changed, removed or inserted.
        """
        with self._lock:
            self._books = Books()
            with self._transaction():
                return self._books.seq

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One write transaction, the books up to date at its start; on an error nothing of it happened."""
        with self._lock:
            committed = None
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._catch_up()
                committed = self._books.seq
                yield
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if self._books.seq != committed:  # the books are ahead of the file: read it anew
                    self._books = Books()
                if isinstance(error, sqlite3.Error):
                    raise RefusedError(f"{self._path}: the ledger failed ({error}); nothing is released") from None
                raise

    def _catch_up(self) -> None:
        """Read what other processes wrote; refuse a file that is behind what was counted, or behind what was read."""
        self._books.follow(self._database.execute(_NEW_ROWS, (self._books.seq,)), file=self._path)
        entries = self._database.execute("SELECT ifnull(max(seq), 0) FROM entries").fetchone()[0]
        for count in (Count(self._books.seq, self._books.head), read_count(self._path)):
            check_count(self._path, count, entries=entries, head_then=self._head_of(count.entries if count else 0))

    def _head_of(self, seq: int) -> bytes:
        found = self._database.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone()
        return found[0] if found else GENESIS

    def _begin_count(self) -> None:
        """A new ledger is counted before its file is there, so that whatever has rows has a count."""
        if not self._path.exists():
            count = read_count(self._path)
            check_count(self._path, count, entries=0, head_then=GENESIS)
            if count is None:
                write_count(self._path, Count(0, GENESIS))

    def _count(self) -> None:
        """Count the rows on disk, in a transaction, so that no process counts fewer than another did."""
        with self._transaction():
            count = Count(self._books.seq, self._books.head)
            if count != read_count(self._path):
                write_count(self._path, count)

    def _append(self, kind: Kind, about: Reservation | Row | str, body: bytes) -> int:
        """Write a row that reserves, one about a reservation's row, or one about a data set; returns its number."""
        books = self._books
        seq = books.seq + 1
        if isinstance(about, str):
            row = Row(seq, about, kind, seq, "", 0, 0, body)
        else:
            reservation = about.seq if isinstance(about, Row) else seq
            row = Row(seq, about.dataset_id, kind, reservation, about.session, about.round, about.attempt, body)
        digest = row.hash_after(books.head)
        self._database.execute(INSERT, (*row, books.head, digest))
        books.add(row, digest)
        return seq

    def _check(self, entries: Sequence[Reservation]) -> None:
        books = self._books
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
            self._check_releases(*key, most=entry.max_releases)
            asked[entry.dataset_id][entry.event] += 1
        for dataset_id, counts in asked.items():
            self._check_budget(dataset_id, self._books.spent[dataset_id] + counts)

    def _check_releases(self, dataset_id: str, session: str, *, most: int) -> None:
        made = self._books.releases[dataset_id, session]
        if made >= most:
            raise RefusedError(f'data set "{dataset_id}" made {made} releases in session {session}; it may make {most}')

    def _check_budget(self, dataset_id: str, counts: Counter[bytes]) -> None:
        budget = self._books.budget(dataset_id)
        epsilon = budget.spent_by(counts)
        if not epsilon <= budget.max_epsilon:
            raise BudgetExceededError(
                f'data set "{dataset_id}": this release would bring epsilon to {rounded_up(epsilon, 4)}; its budget is '
                f"{budget}; no record was read"
            )

    def _open_row(self, reservation: int) -> Row:
        books = self._books
        if reservation not in self._own or reservation in books.released or reservation not in books.reservations:
            raise RefusedError(f"reservation {reservation} is not an open one of this process; it stays as it is")
        return books.reservations[reservation]
