"""What a holder must not forget of a session: how far it got, its one configuration, the one model it attested.

It is forgotten neither when the agent restarts nor when other sessions begin.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlearn.errors import ProtocolError, RefusedError
from fedlearn.host.durable import identity_of_database, open_database

__all__ = ["Positions"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    dataset_id TEXT NOT NULL, session TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (dataset_id, session)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pinned (
    seq INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, config_hash BLOB NOT NULL, config BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS attested (
    dataset_id TEXT NOT NULL, session TEXT NOT NULL, model_hash BLOB NOT NULL, PRIMARY KEY (dataset_id, session)
) STRICT, WITHOUT ROWID;
"""
_ADVANCE = """
INSERT INTO positions VALUES (?1, ?2, ?3, ?4)
ON CONFLICT DO UPDATE SET round = ?3, attempt = ?4 WHERE (round, attempt) < (?3, ?4)
"""
_PINNED = "SELECT config_hash, config FROM pinned WHERE session = ?"
_PIN = """
INSERT INTO pinned (session, config_hash, config) VALUES (?1, ?2, ?3)
ON CONFLICT (session) DO UPDATE SET config = ?3 WHERE config IS NULL
"""
# A configuration may have a MiB, and a session costs its coordinator nothing before something is booked for it.
# `entries` is the ledger's table.
_CONFIGURATIONS_KEPT = 32
_DROP = """
UPDATE pinned SET config = NULL WHERE config IS NOT NULL AND session NOT IN (SELECT session FROM entries)
AND seq NOT IN (SELECT seq FROM pinned WHERE config IS NOT NULL ORDER BY session = ?1 DESC, seq DESC LIMIT ?2)
"""
_ATTESTED = "SELECT model_hash FROM attested WHERE dataset_id = ? AND session = ?"


class Positions:
    """Tables beside the ledger's, in the same file. What writes returns when it is on disk.

    Guarantees:
        (round, attempt) of a session only grows at a data set;
        a session has one configuration, and with it one data set of a holder;
        its bytes stay while the ledger has an entry of the session, of others those of the latest alone;
        one model of a session is attested, and from then on no attempt of it begins at that data set.

    Raises:
        RefusedError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._database = open_database(path, _SCHEMA)
        except sqlite3.DatabaseError as error:
            raise RefusedError(f"{path}: the ledger cannot be opened ({error}); nothing is answered") from None
        self._identity = identity_of_database(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def advance(self, dataset_id: str, session: str, round_number: int, attempt: int, config: bytes) -> None:
        """Move a session forward; its first `config`, canonical bytes, is pinned.

        Raises:
            ProtocolError: it is there already, or further; it has another configuration, or is attested.
            RefusedError: the file cannot be written, or was removed or replaced.
        """
        with self._transaction() as database:
            if database.execute(_ATTESTED, (dataset_id, session)).fetchone():
                raise ProtocolError("a round of a session that is attested")
            digest = hashlib.sha256(config).digest()
            pinned = database.execute(_PINNED, (session,)).fetchone()
            _check_pinned(pinned, digest)
            if pinned is None or pinned[1] is None:
                database.execute(_PIN, (session, digest, config))
                database.execute(_DROP, (session, _CONFIGURATIONS_KEPT))
            if not database.execute(_ADVANCE, (dataset_id, session, round_number, attempt)).rowcount:
                raise ProtocolError(
                    f"round {round_number}, attempt {attempt} does not come after the session's last one"
                )

    def configuration(self, session: str) -> bytes | None:
        """The canonical bytes that a session is pinned to; None for one that never began, or whose are not kept.

        Raises:
            RefusedError: the file cannot be read, or was removed or replaced.
        """
        with self._transaction() as database:
            pinned = database.execute(_PINNED, (session,)).fetchone()
        return None if pinned is None or pinned[1] is None else bytes(pinned[1])

    def check_configuration(self, session: str, config: bytes) -> None:
        """Refuse another configuration than the one that a session is pinned to.

        Raises:
            ProtocolError: it is another.
            RefusedError: as `configuration`.
        """
        with self._transaction() as database:
            pinned = database.execute(_PINNED, (session,)).fetchone()
        _check_pinned(pinned, hashlib.sha256(config).digest())

    def attest(self, dataset_id: str, session: str, model_hash: bytes) -> None:
        """End a session for good with the one model of which this hash is; the same one may come again.

        Raises:
            ProtocolError: another model was attested.
            RefusedError: the file cannot be written, or was removed or replaced.
        """
        with self._transaction() as database:
            attested = database.execute(_ATTESTED, (dataset_id, session)).fetchone()
            if attested is None:
                database.execute("INSERT INTO attested VALUES (?, ?, ?)", (dataset_id, session, model_hash))
            elif attested[0] != model_hash:
                raise ProtocolError("another model for a session that is attested")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing."""
        if identity_of_database(self._path) != self._identity:
            raise RefusedError(
                f"{self._path}: the ledger was removed or replaced while it was open; nothing is answered"
            )
        try:
            with self._lock, self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
        except sqlite3.Error as error:
            raise RefusedError(f"{self._path}: the ledger failed ({error}); nothing is answered") from None


def _check_pinned(pinned: tuple[bytes, bytes | None] | None, digest: bytes) -> None:
    if pinned is not None and pinned[0] != digest:
        raise ProtocolError("the configuration changed within a session")
