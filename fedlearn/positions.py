"""How far each session got at each data set: (round, attempt) only grows, also over a restart."""

import sqlite3
import threading
from pathlib import Path

from fedlearn.durable import identity_of_database, open_database
from fedlearn.errors import ProtocolError, RefusedError

__all__ = ["Positions"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    dataset_id TEXT NOT NULL, session TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (dataset_id, session)
) STRICT, WITHOUT ROWID;
"""
_ADVANCE = """
INSERT INTO positions VALUES (?1, ?2, ?3, ?4)
ON CONFLICT DO UPDATE SET round = ?3, attempt = ?4 WHERE (round, attempt) < (?3, ?4)
"""


class Positions:
    """A table beside the ledger's, in the same file. `advance` returns when the position is on disk.

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

    def advance(self, dataset_id: str, session: str, round_number: int, attempt: int) -> None:
        """Move a session forward.

        Raises:
            ProtocolError: it is there already, or further.
            RefusedError: the file cannot be written, or was removed or replaced.
        """
        if identity_of_database(self._path) != self._identity:
            raise RefusedError(
                f"{self._path}: the ledger was removed or replaced while it was open; nothing is answered"
            )
        try:
            with self._lock:
                moved = self._database.execute(_ADVANCE, (dataset_id, session, round_number, attempt)).rowcount
        except sqlite3.Error as error:
            raise RefusedError(f"{self._path}: the ledger failed ({error}); nothing is answered") from None
        if not moved:
            raise ProtocolError(f"round {round_number}, attempt {attempt} does not come after the session's last one")
