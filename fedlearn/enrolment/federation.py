"""Who was invited, who joined, and the rosters that came of it: the coordinator's book of members.

A member is invited, joined or revoked. The names that are invited and not revoked are the next roster; it is closed
when all of them have joined, and a closed one never changes: who joins later, or is revoked, makes the next version.
"""

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.crypto.certificates import node_key_bytes
from fedlearn.enrolment.invitation import Applicant, is_proven, verifier_of
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.host.durable import open_database
from fedlearn.policy.roster import Roster, RosterEntry

__all__ = ["Federation", "Member"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS member (
    name TEXT PRIMARY KEY,
    verifier BLOB NOT NULL,
    expires REAL NOT NULL,
    client_id BLOB UNIQUE,
    key BLOB UNIQUE,
    node_key BLOB UNIQUE,
    contact TEXT,
    revoked INTEGER NOT NULL DEFAULT 0,
    roster INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS roster (version INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS burnt (key BLOB PRIMARY KEY) STRICT;
"""
_COLUMNS: Final = "name, verifier, expires, client_id, key, node_key, contact, revoked, roster"
_SECRET_BYTES: Final = 16
_RESERVED: Final = ("all", "coordinator")
_LONGEST_NAME: Final = 64
_LONGEST_CONTACT: Final = 200


@dataclass(frozen=True, slots=True)
class Member:
    """One row. `applicant` is None until it joined; `roster` is the last version it was given."""

    name: str
    verifier: bytes
    expires: float
    applicant: Applicant | None
    revoked: bool
    roster: int

    def __repr__(self) -> str:
        return f"Member({self.name}, joined={self.applicant is not None}, revoked={self.revoked})"


class Federation:
    """The book of members in one SQLite file; any number of processes may have it open.

    Guarantees:
        a code lets one party in, until it expires; what is kept of it does not show it;
        no key and no client id is ever let in twice, those of revoked members neither;
        a closed roster stays byte for byte as it is.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the book, or begin one.

        Raises:
            ConfigError: the file is no such book.
        """
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self._database = open_database(path, _SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: not a book of members ({error}); restore it from a backup") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def invite(self, names: Sequence[str], *, pin: bytes, days: float) -> list[bytes]:
        """A fresh secret for each name; whoever had one that was not used has it no more.

        Raises:
            ConfigError: a name that cannot be, twice, or of somebody who joined.
        """
        invited = [secrets.token_bytes(_SECRET_BYTES) for _ in names]
        with self._transaction():
            known = {member.name: member for member in self._members()}
            for name in names:
                _check_name(name)
                if (before := known.get(name)) and before.applicant and not before.revoked:
                    raise ConfigError(f"{name} has joined; fedlearn server revoke {name} first, to let another key in")
            _check_rows([*(name for name, member in known.items() if not member.revoked and name not in names), *names])
            for name, secret in zip(names, invited, strict=True):
                row = (name, verifier_of(secret, pin), self._clock() + days * 86400)
                self._database.execute("INSERT OR REPLACE INTO member (name, verifier, expires) VALUES (?, ?, ?)", row)
        return invited

    def members(self) -> list[Member]:
        """Everybody who was invited, by name."""
        with self._lock:
            return self._members()

    def is_open(self, member: Member) -> bool:
        """Whether a code of this member can still be used."""
        return member.applicant is None and not member.revoked and member.expires > self._clock()

    def admit(self, applicant: Applicant, proof: bytes, signature: bytes, *, pin: bytes, nonce: bytes) -> Member:
        """Let in whoever proves a code. The same party may prove it again: it may not have had the answer.

        Raises:
            RefusedError: no open code is proven, or these keys cannot be let in. It does not say which.
        """
        with self._transaction():
            # All are tried, so that the time does not say which of them fits.
            fitting = [
                member
                for member in self._members()
                if is_proven(member.verifier, applicant, proof, signature, pin=pin, nonce=nonce)
            ]
            if not fitting or not _is_acceptable(applicant):
                raise RefusedError("no open code is proven")
            member = fitting[0]
            if member.applicant == applicant and not member.revoked:
                return member
            if not self.is_open(member) or self._is_burnt(applicant):
                raise RefusedError("the code is used, expired or withdrawn, or the keys were used before")
            values = (applicant.client_id, applicant.key, applicant.node_key, applicant.contact, member.name)
            try:
                self._database.execute(
                    "UPDATE member SET client_id = ?, key = ?, node_key = ?, contact = ? WHERE name = ?", values
                )
            except sqlite3.IntegrityError:
                raise RefusedError("keys of another member") from None
        return Member(member.name, member.verifier, member.expires, applicant, False, 0)

    def revoke(self, name: str) -> Member:
        """Take a member out, or withdraw its invitation; its keys are burnt.

        Raises:
            ConfigError: there is no such name.
        """
        with self._transaction():
            found = [member for member in self._members() if member.name == name]
            if not found:
                known = ", ".join(member.name for member in self._members())
                raise ConfigError(f"{name}: no such member; the names are {known or 'none yet'}")
            if applicant := found[0].applicant:
                burnt = [(hashlib.sha256(key).digest(),) for key in _keys_of(applicant)]
                self._database.executemany("INSERT OR IGNORE INTO burnt VALUES (?)", burnt)
            self._database.execute("UPDATE member SET revoked = 1 WHERE name = ?", (name,))
        return found[0]

    def close_roster(self, coordinator: RosterEntry) -> Roster:
        """Make the roster of all who joined and were not revoked; the same again where nothing changed.

        Raises:
            ConfigError: somebody who was invited has not joined, or nobody has.
        """
        with self._transaction():
            standing = [member for member in self._members() if not member.revoked]
            if missing := [member.name for member in standing if member.applicant is None]:
                raise ConfigError(
                    f"{', '.join(missing)} did not join yet; wait, or withdraw an invitation with fedlearn server "
                    f"revoke {missing[0]}"
                )
            if not standing:
                raise ConfigError("nobody has joined; invite with fedlearn server invite NAME ...")
            roster = Roster.of(coordinator, tuple(_entry(member) for member in standing))
            current = self._current()
            if current is None or current[1] != roster.content:
                version = current[0] + 1 if current else 1
                self._database.execute("INSERT INTO roster VALUES (?, ?)", (version, roster.content))
        return roster

    @property
    def roster(self) -> Roster | None:
        """The roster that was closed last."""
        with self._lock:
            current = self._current()
        return Roster.from_bytes(current[1]) if current else None

    def in_roster(self) -> list[Member]:
        """The members of the last roster that were not revoked since: those whom Flower may know."""
        roster = self.roster
        listed = {entry.client_id for entry in roster.members} if roster else set()
        return [m for m in self.members() if m.applicant and m.applicant.client_id in listed and not m.revoked]

    def give_roster(self, client_id: bytes) -> bytes | None:
        """The last roster's bytes for one of its members, which then counts as told; None while it is open."""
        with self._transaction():
            current = self._current()
            if current is None or not any(e.client_id == client_id for e in Roster.from_bytes(current[1]).members):
                return None
            self._database.execute("UPDATE member SET roster = ? WHERE client_id = ?", (current[0], client_id))
        return current[1]

    def is_awaited(self) -> bool:
        """Whether anybody may still join, or has not been given the last roster."""
        with self._lock:
            current = self._current()
            members = self._members()
        version = current[0] if current else 1
        return any(self.is_open(m) or (m.applicant and not m.revoked and m.roster < version) for m in members)

    def _members(self) -> list[Member]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM member ORDER BY name").fetchall()  # noqa: S608 (constant)
        return [_member(*row) for row in rows]

    def _current(self) -> tuple[int, bytes] | None:
        row: tuple[int, bytes] | None = self._database.execute(
            "SELECT version, content FROM roster ORDER BY version DESC LIMIT 1"
        ).fetchone()
        return row

    def _is_burnt(self, applicant: Applicant) -> bool:
        digests = [hashlib.sha256(key).digest() for key in _keys_of(applicant)]
        asked = "SELECT 1 FROM burnt WHERE key IN (?, ?, ?)"
        return self._database.execute(asked, digests).fetchone() is not None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _member(
    name: str,
    verifier: bytes,
    expires: float,
    client_id: bytes | None,
    key: bytes,
    node_key: bytes,
    contact: str,
    revoked: int,
    roster: int,
) -> Member:
    applicant = Applicant(client_id, key, node_key, contact) if client_id is not None else None
    return Member(name, verifier, expires, applicant, bool(revoked), roster)


def _keys_of(applicant: Applicant) -> tuple[bytes, bytes, bytes]:
    return applicant.client_id, applicant.key, applicant.node_key


def _entry(member: Member) -> RosterEntry:
    assert member.applicant is not None
    return RosterEntry(member.name, member.applicant.contact, member.applicant.client_id, member.applicant.key)


def _is_acceptable(applicant: Applicant) -> bool:
    """Whether a roster could have these."""
    try:
        node_key_bytes(applicant.node_key)
    except ConfigError:
        return False
    right_sizes = len(applicant.client_id) == 16 and len(applicant.key) == 32
    return right_sizes and len(applicant.contact) <= _LONGEST_CONTACT and applicant.contact.isprintable()


def _check_name(name: str) -> None:
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME or name.casefold() in _RESERVED:
        raise ConfigError(
            f'"{name}" cannot be a member\'s name; expected 1 to {_LONGEST_NAME} printable signs, and not '
            f"{' or '.join(_RESERVED)}"
        )


def _check_rows(names: Sequence[str]) -> None:
    """Names as a roster would have them: none twice, none that read alike."""
    numbers = range(1, len(names) + 1)
    entries = [
        RosterEntry(name, "", n.to_bytes(16, "big"), n.to_bytes(32, "big"))
        for n, name in zip(numbers, names, strict=True)
    ]
    Roster.of(RosterEntry(_RESERVED[1], "", bytes(16), bytes(32)), tuple(entries))
