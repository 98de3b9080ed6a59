"""What a ledger file says, read by one who only looks: spent and left of each data set, and every row."""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlearn.canonical import canonical_json
from fedlearn.errors import ConfigError, FedlearnError, RefusedError
from fedlearn.host.durable import open_database_to_read
from fedlearn.ledger.books import Books
from fedlearn.ledger.budget import Budget
from fedlearn.ledger.count import Count, check_count, read_count
from fedlearn.ledger.rows import GENESIS, SELECT, Row
from fedlearn.privacy.guarantee import rounded_up

__all__ = ["Account", "Statement", "exported_rows", "read_statement"]

_ALL = SELECT + "ORDER BY seq"
_PLACES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One data set: its budget, what is spent of it, and by whom.

    `spent` is epsilon at the budget's own order, which the budget bounds; `estimate` is epsilon at the best order.
    `releases` are those of each session; `reserved` counts reservations that were neither released nor voided, and
    are spent like releases. `confirmed`: the holder said that its records may be known under another id.
    """

    dataset_id: str
    budget: Budget
    spent: float
    estimate: float
    releases: Mapping[str, int]
    reserved: int
    confirmed: bool

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON has it; epsilons are rounded up to 6 decimals."""
        return {
            "dataset_id": self.dataset_id,
            "privacy_unit": self.budget.privacy_unit,
            "max_epsilon": self.budget.max_epsilon,
            "max_delta": self.budget.max_delta,
            "order": self.budget.order,
            "spent": rounded_up(self.spent, _PLACES),
            "estimate": rounded_up(self.estimate, _PLACES),
            "releases": dict(self.releases),
            "reserved": self.reserved,
            "confirmed": self.confirmed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A whole ledger whose chain holds: the number of its rows, the hash of the last one, and an account a data set.

    Without a count beside the file, rows may be missing at its end: a copy that was made for an auditor, say.
    """

    entries: int
    head: bytes
    counted: int | None  # how many of the rows stand in the count beside the file; None where there is no count
    accounts: tuple[Account, ...]

    def account(self, dataset_id: str) -> Account:
        """The account of one data set.

        Raises:
            ConfigError: there is none.
        """
        for account in self.accounts:
            if account.dataset_id == dataset_id:
                return account
        known = ", ".join(account.dataset_id for account in self.accounts) or "no data set"
        raise ConfigError(f'data set "{dataset_id}" is not in this ledger; it has {known}')

    def as_dict(self) -> dict[str, Any]:
        """The statement as JSON has it."""
        accounts = [account.as_dict() for account in self.accounts]
        return {"entries": self.entries, "head": self.head.hex(), "counted": self.counted, "datasets": accounts}


def read_statement(path: Path) -> Statement:
    """Read a ledger, check every row, add it up.

    Raises:
        ConfigError: there is no such file, or it is not a ledger.
        FedlearnError: a row is not what was written, or rows are missing that were counted.
    """
    books, _, count = _read(path)
    open_ones = Counter(row.dataset_id for row in books.reservations.values() if row.seq not in books.released)
    accounts = tuple(_account(books, dataset_id, open_ones[dataset_id]) for dataset_id in sorted(books.budgets))
    counted = count.entries if count else None
    return Statement(entries=books.seq, head=books.head, counted=counted, accounts=accounts)


def exported_rows(path: Path) -> list[bytes]:
    """Every row of a ledger in canonical JSON, hashes in hex, oldest first: enough to check the chain again.

    Raises:
        ConfigError, FedlearnError: as `read_statement`.
    """
    _, stored, _ = _read(path)
    return [
        canonical_json({**Row(*values).as_dict(), "prev_hash": previous.hex(), "hash": digest.hex()})
        for *values, previous, digest in stored
    ]


def _read(path: Path) -> tuple[Books, list[tuple[Any, ...]], Count | None]:
    """What the rows add up to, the rows as they are stored, and what was counted: read first, for it lags."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the ledger of a data holder, or ledger.db of a run folder")
    books = Books()
    try:
        count = read_count(path)
        stored = _stored(path)
        books.follow(stored, file=path)
        if count is not None:
            counted_rows = stored[: count.entries]
            check_count(path, count, entries=books.seq, head_then=counted_rows[-1][-1] if counted_rows else GENESIS)
    except RefusedError as error:
        raise FedlearnError(str(error)) from None
    return books, stored, count


def _stored(path: Path) -> list[tuple[Any, ...]]:
    """All rows as they lie in the file; read again where a process that writes moved rows meanwhile."""
    try:
        while True:
            before = path.stat()
            with closing(open_database_to_read(path)) as database:
                rows = database.execute(_ALL).fetchall()
            after = path.stat()
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
                return rows
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path}: this is not a ledger, or it cannot be read ({error})") from None


def _account(books: Books, dataset_id: str, reserved: int) -> Account:
    budget, events = books.budgets[dataset_id], books.spent[dataset_id]
    return Account(
        dataset_id=dataset_id,
        budget=budget,
        spent=budget.spent_by(events),
        estimate=budget.estimate_of(events),
        releases={session: count for (name, session), count in books.releases.items() if name == dataset_id},
        reserved=reserved,
        confirmed=dataset_id in books.confirmed,
    )
