"""The SuperLink of a coordinator: one child process behind the gate, its database, and all that descends from it."""

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from fedlearn.deployment.server_home import ServerHome
from fedlearn.errors import RunFailedError
from fedlearn.flower.process_tree import end_descendants
from fedlearn.flower.programs import flower_environment, listens

__all__ = ["SuperLinkProcess", "is_whole", "set_damaged_aside"]

_LOG_BYTES: Final = 20 << 20
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 8.0
_POLL_SECONDS: Final = 0.1


class SuperLinkProcess:
    """Starts it, looks after it, ends it."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process is there; it may still be stuck."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self._home.folder / "superlink.log"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RunFailedError: it ended, or does not answer in time.
        """
        home = self._home
        database = home.folder / "superlink.db"
        set_damaged_aside(database)
        database.touch(mode=0o600)
        command = [sys.executable, "-P", "-m", "fedlearn.flower.superlink_gate"]
        command += ["--ssl-certfile", str(home.certificate_path), "--ssl-keyfile", str(home.key_path)]
        command += ["--ssl-ca-certfile", str(home.authority_path), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation", "--database", str(database)]
        command += ["--host", home.host, "--port", str(home.port)]
        _rotate(self.log_path)
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the process that ends it in order.
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=flower_environment(home.folder / "flwr"),
                cwd=home.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not listens(home.port, home.local_host):
            if not self.is_alive or time.monotonic() > deadline:
                code = self._process.poll()
                self.stop()
                how = "does not answer" if code is None else f"ended with code {code}"
                raise RunFailedError(f"Flower's SuperLink {how}; what it said stands in {self.log_path}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it in order, then whatever is left of its descendants, whatever their state."""
        if self._process is not None:
            if self.is_alive:
                self._process.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + _END_SECONDS
                while self.is_alive and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None
        end_descendants()


def set_damaged_aside(database: Path) -> Path | None:
    """Move a SQLite file that is damaged out of the way, with what belongs to it; gives its new name.

    What stood in it is known elsewhere: members in the book of members, runs in their folders (reliability.md, F15).
    """
    if not database.exists() or is_whole(database):
        return None
    aside = database.with_name(f"{database.name}.damaged-{int(time.time())}")
    for suffix in ("", "-wal", "-shm"):
        part = database.with_name(database.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def is_whole(database: Path) -> bool:
    """Whether a SQLite file is undamaged; one that is in use, or has no space, counts as such."""
    try:
        connection = sqlite3.connect(database, timeout=30.0)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return True  # locked, or no space: Flower says so itself, and nothing is lost
    except sqlite3.DatabaseError:
        return False


def _rotate(log: Path) -> None:
    """Keep one older log, and begin a new one, where it is too long."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
