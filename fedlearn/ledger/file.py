"""The file of a ledger: SQLite, rows only appended, each transaction on disk before it ends."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlearn.errors import RefusedError
from fedlearn.host.durable import identity_of_database, open_database
from fedlearn.ledger.books import Books
from fedlearn.ledger.count import Count, check_count, read_count, write_count
from fedlearn.ledger.rows import GENESIS, INSERT, SCHEMA, SELECT, Kind, Reservation, Row

__all__ = ["LedgerFile"]

_NEW_ROWS = SELECT + "WHERE seq > ? ORDER BY seq"
_ROWS_OF_SESSION = SELECT + "WHERE session = ? AND dataset_id = ifnull(?, dataset_id) ORDER BY seq"


class LedgerFile:
    """The rows of one file and the books over them, in one process; several processes may hold the same file.

    Guarantees:
        inside a transaction the books are those of all rows on disk and of those appended, and nobody else appends;
        a transaction that fails leaves no row, and one that ended is on disk;
        a row that was changed, inserted or taken out is noticed on opening;
        a file that is behind its count, or behind what this process read, is refused;
        once the file was removed or another one put in its place, every transaction is refused;
        file, journal and count are their owner's alone to read.

    Raises:
        RefusedError: the file is not a ledger, was changed, is an older copy, or came without its count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._closed = False
        self.books = Books()
        self._begin_count()
        try:
            self._database = open_database(path, SCHEMA)
        except sqlite3.DatabaseError as error:
            raise RefusedError(f"{path}: the ledger cannot be opened ({error}); nothing is released") from None
        self._identity = identity_of_database(path)
        try:
            self.count()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the file; a second time is nothing."""
        if not self._closed:
            with suppress(RefusedError):  # a count that lags is no error
                self.count()
            self._database.close()
        self._closed = True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One write transaction, the books up to date at its start.

        Raises:
            RefusedError: the file cannot be read or written, or is not the one that was counted.
        """
        with self._lock:
            committed = None
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._check_identity()
                self._catch_up()
                committed = self.books.seq
                yield
                self._database.execute("COMMIT")
                self._check_identity()
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if self.books.seq != committed:  # the books are ahead of the file: read it anew
                    self.books = Books()
                if isinstance(error, sqlite3.Error):
                    raise RefusedError(f"{self._path}: the ledger failed ({error}); nothing is released") from None
                raise

    def append(self, kind: Kind, about: Reservation | Row | str, body: bytes) -> int:
        """Inside a transaction: a row that reserves, one about a reservation, or one about a data set; its number."""
        books = self.books
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

    def count(self) -> None:
        """Count the rows on disk, in a transaction, so that no process counts fewer than another did.

        Raises:
            RefusedError: the count cannot be written.
        """
        with self.transaction():
            count = Count(self.books.seq, self.books.head)
            if count != read_count(self._path):
                write_count(self._path, count)

    def rows_of_session(self, session: str, dataset_id: str | None) -> list[Row]:
        """Inside a transaction: the session's rows, of one data set or of all, oldest first."""
        return [Row(*values) for *values, _, _ in self._database.execute(_ROWS_OF_SESSION, (session, dataset_id))]

    def reread(self) -> None:
        """Check every row again at the next transaction."""
        with self._lock:
            self.books = Books()

    def salt(self) -> bytes:
        """The 32 secret bytes under which this ledger's fingerprints are made; drawn at the first use.

        Raises:
            RefusedError: the file cannot be read or written.
        """
        with self.transaction():
            self._database.execute("INSERT OR IGNORE INTO salts VALUES (1, ?)", (os.urandom(32),))
            return bytes(self._database.execute("SELECT salt FROM salts").fetchone()[0])

    def _check_identity(self) -> None:
        """SQLite goes on with files that have no name any more, and what is booked there is lost with them."""
        if identity_of_database(self._path) != self._identity:
            raise RefusedError(
                f"{self._path}: the ledger was removed or replaced while it was open; nothing is released until it is "
                "put back with its count and the agent is started again"
            )

    def _catch_up(self) -> None:
        """Read what other processes wrote; refuse a file that is behind what was counted, or behind what was read."""
        self.books.follow(self._database.execute(_NEW_ROWS, (self.books.seq,)), file=self._path)
        entries = self._database.execute("SELECT ifnull(max(seq), 0) FROM entries").fetchone()[0]
        for count in (Count(self.books.seq, self.books.head), read_count(self._path)):
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
