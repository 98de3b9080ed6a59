"""Files that a crash leaves whole: the one way to replace a file, to open a database that must not forget, to lock."""

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "append_whole",
    "check_replaceable",
    "identity_of_database",
    "is_locked",
    "locked",
    "open_database",
    "open_database_to_read",
    "read_small",
    "write_whole",
]

_BUSY_SECONDS = 30.0
# Who opens a file in somebody else's folder follows no link and waits for no pipe.
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
_SPECIAL = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def write_whole(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace a file as a whole, durably: a temporary name beside it, fsync, rename.

    `mode` is set whatever the umask is; None leaves it to the umask.

    Guarantees:
        under its name there is the old content or the new, never a part; a failed write leaves nothing behind;
        what is there and is no plain file stays: a link, a device, a pipe, a socket, a folder.

    Raises:
        OSError: it cannot be written, or is something else than a file; the error names the file.
    """
    unfinished = path.with_name(f".{path.name}.new")
    with _named(path):
        check_replaceable(path)
        unfinished.unlink(missing_ok=True)  # of a process that was killed
        created = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
        try:
            with os.fdopen(created, "wb") as file:
                file.write(content)
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def check_replaceable(path: Path) -> None:
    """See that nothing or a plain file has this name: what is renamed replaces anything, for root /dev/stdout too.

    Raises:
        OSError: something else has; the error names it.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        what = next((name for is_it, name in _SPECIAL if is_it(kind)), "no file")
        raise OSError(errno.EEXIST, f"is {what}, which is not replaced; expected the name of a plain file", str(path))


def append_whole(path: Path, content: bytes) -> None:
    """Add to the end of a file, durably. Whoever dies in it, or fails, leaves a part of `content` at the end.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    with _named(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_small(path: Path, *, most: int = 1 << 16) -> bytes:
    """The bytes of a file, at most so many, whoever owns its folder: no link is followed, and nothing is waited for.

    Raises:
        OSError: it cannot be read, is longer, or is something else than a file; the error names it.
    """
    with _named(path), os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NO_LINK | _NO_WAIT), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "expected a file", str(path))
        content = file.read(most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, f"expected at most {most} bytes", str(path))
        return content


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A full disk does not say which file it has no room for."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def locked(path: Path, *, mode: int = 0o666) -> Iterator[int]:
    """Hold the lock of a file, which is made (with `mode`, less the umask) if it is not there; yields its descriptor.

    A link in its place is not followed.

    A child process that is given the descriptor holds the lock too. The kernel gives it back when all of them are dead.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NO_LINK, mode)
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file; one that is not there is not made, and a link is not followed.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NO_LINK | _NO_WAIT)
    except FileNotFoundError:
        return False
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """A SQLite file of which every committed transaction is on disk; transactions are the caller's, in any thread.

    Guarantees: the file and those that SQLite puts beside it are its owner's alone to read, from their creation on and
    whatever the umask is.

    Raises:
        sqlite3.DatabaseError: it is not a database, or cannot be opened.
    """
    _close_to_others(path)
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.executescript(schema)
    return database


def _close_to_others(path: Path) -> None:
    """Make a file of mode 0600, or give what is there that mode; SQLite gives it to the files beside it.

    What cannot be done is said by SQLite, or another owner's to do. An existing file is not opened: closing it would
    give back the locks that SQLite holds on it in this process.
    """
    with suppress(OSError):
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(0o600)


def identity_of_database(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Which files an open database's path and its journal's lead to now: device and number, None where to none.

    While a process has the database open neither changes, unless somebody takes a file away.
    """
    return tuple(_identity(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_database_to_read(path: Path) -> sqlite3.Connection:
    """A SQLite file as it stands, for one who only looks: neither it nor anything beside it is created or changed.

    Where a journal lies beside the file, a process holds it open or died with it open, and what the journal has counts.

    Raises:
        sqlite3.DatabaseError: it is not a database, or cannot be opened.
    """
    in_use = path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"{path.absolute().as_uri()}?{'mode=ro' if in_use else 'immutable=1'}", uri=True)
