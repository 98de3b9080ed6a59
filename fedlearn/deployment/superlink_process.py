"""The SuperLink of a coordinator: one child process behind the gate, its database, and all that descends from it."""

import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

from fedlearn.deployment.parts import Part
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import RunFailedError
from fedlearn.flower.control import Control
from fedlearn.flower.own_socket import SOCKET_VARIABLE
from fedlearn.flower.programs import flower_environment, listens, private_folder
from fedlearn.host.durable import read_small, write_whole
from fedlearn.host.process_tree import end_descendants

__all__ = ["SuperLinkProcess", "control_of", "is_whole", "set_damaged_aside"]

# In the home while the SuperLink runs: the path of the socket at which it may be told what to do.
_ADDRESS_FILE: Final = "superlink.address"

_START_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


class SuperLinkProcess:
    """Starts it, looks after it, ends it."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._place: Path | None = None
        environment = flower_environment(home.folder / "flwr")
        self._part = Part("superlink", self._command(), environment, home.folder / "superlink.log", folder=home.folder)

    @property
    def is_alive(self) -> bool:
        """Whether the process is there; it may still be stuck."""
        return self._part.is_alive

    @property
    def is_stuck(self) -> bool:
        """Whether it is there, and was not `heard` for a minute."""
        return self.is_alive and self._part.silence.is_long

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self._part.log_file

    def heard(self) -> None:
        """It answered."""
        self._part.silence.heard()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RunFailedError: it ended, or does not answer in time.
        """
        home = self._home
        database = home.folder / "superlink.db"
        set_damaged_aside(database)
        database.touch(mode=0o600)
        self._place = private_folder()
        socket = str(self._place / "superlink.sock")
        write_whole(home.folder / _ADDRESS_FILE, socket.encode(), mode=0o600)
        self._part.environment = {**self._part.environment, SOCKET_VARIABLE: socket}
        self._part.start()
        deadline = time.monotonic() + _START_SECONDS
        while not listens(home.port, home.local_host):
            if not self.is_alive or time.monotonic() > deadline:
                code = self._part.process.poll() if self._part.process else None
                self.stop()
                how = "does not answer" if code is None else f"ended with code {code}"
                raise RunFailedError(f"Flower's SuperLink {how}; what it said stands in {self.log_path}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it in order, then whatever is left of its descendants, whatever their state."""
        self._part.end()
        end_descendants()
        (self._home.folder / _ADDRESS_FILE).unlink(missing_ok=True)
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    def _command(self) -> list[str]:
        home = self._home
        command = [sys.executable, "-P", "-m", "fedlearn.flower.superlink_gate"]
        command += ["--ssl-certfile", str(home.certificate_path), "--ssl-keyfile", str(home.key_path)]
        command += ["--ssl-ca-certfile", str(home.authority_path), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation", "--database", str(home.folder / "superlink.db")]
        return [*command, "--host", home.host, "--port", str(home.port)]


def control_of(home: ServerHome) -> Control:
    """The SuperLink of a home, for whoever may read the home.

    Raises:
        RunFailedError: it is not started.
    """
    try:
        socket = Path(read_small(home.folder / _ADDRESS_FILE).decode())
    except (OSError, ValueError):
        raise RunFailedError(f"{home.folder}: Flower's SuperLink is not started") from None
    return Control(home.local_address, home.authority.certificate.pem, socket)


def set_damaged_aside(database: Path) -> Path | None:
    """Move a SQLite file that is damaged out of the way, with what belongs to it; gives its new name.

    What stood in it is known elsewhere: members in the book of members, runs in their folders
    (docs/specification/faults.md F15).
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
