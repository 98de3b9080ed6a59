"""What both parties' services have in common: one a folder, in the foreground or in a process of its own, and its end.

While a service runs it holds the lock of a file, and its process id stands in it: a dead one holds nothing.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.host.durable import is_locked, locked, read_small
from fedlearn.host.logs import LOG_VARIABLE
from fedlearn.host.process_tree import user_of

__all__ = ["EndedEarlyError", "only_one", "process_of", "start_in_background", "stop", "until_told"]

_POLL_SECONDS: Final = 0.2
_LONGEST_ID: Final = 32


class EndedEarlyError(RunFailedError):
    """A process that was started ended before it was up; the text is its own last sentence, `code` its exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def until_told() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


@contextmanager
def only_one(lock: Path, *, otherwise: Callable[[int | None], str]) -> Iterator[None]:
    """Run with the lock, this process's id in its file.

    Raises:
        ConfigError: another process holds it; what `otherwise` says of that process.
    """
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(locked(lock, mode=0o600))
        except BlockingIOError:
            raise ConfigError(otherwise(_written_in(lock))) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield


def process_of(lock: Path) -> int | None:
    """The process that holds the lock; None where none does, or none that this user may see."""
    try:
        return _written_in(lock) if is_locked(lock) else None
    except OSError:
        return None


def start_in_background(
    arguments: Sequence[str], log: Path, *, is_up: Callable[[int], bool], seconds: float, party: str
) -> int:
    """Run `fedlearn` with these arguments in a process of its own; gives its id once `is_up` says so of it.

    Raises:
        EndedEarlyError: it ended before.
        RunFailedError: it is not up after so many seconds, and was told to end.
    """
    with log.open("ab") as said:
        began = said.tell()
        process = subprocess.Popen(  # noqa: S603 (our own command)
            [sys.executable, "-P", "-m", "fedlearn.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, LOG_VARIABLE: "json"},
            start_new_session=True,
        )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            lines = log.read_bytes()[began:].decode("utf-8", "replace").splitlines()
            raise EndedEarlyError(_last_sentence(lines) or f"the {party} did not start", code)
        if is_up(process.pid):
            return process.pid
        time.sleep(_POLL_SECONDS)
    os.kill(process.pid, signal.SIGTERM)
    raise RunFailedError(f"the {party} did not come up in {seconds:.0f} s; see {log}")


def stop(lock: Path, *, seconds: float, otherwise: str) -> None:
    """End the process that holds the lock, and wait for it.

    Guarantees: whoever owns the file, and may write any number into it, has no process of another user ended.

    Raises:
        ConfigError: none does; `otherwise`.
        RunFailedError: it is another user's, is not on this machine, or does not end.
    """
    process = process_of(lock)
    if process is None:
        raise ConfigError(otherwise)
    if user_of(process) not in (None, lock.lstat().st_uid):
        raise RunFailedError(
            f"{lock}: says process {process}, which is not of the user who owns this file; nothing was ended"
        )
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        raise RunFailedError(
            f"{lock}: says process {process}, which is not here; end it where it runs, such as its container"
        ) from None
    deadline = time.monotonic() + seconds
    while process_of(lock) is not None:
        if time.monotonic() > deadline:
            raise RunFailedError(f"process {process} does not end; end it with kill -9 {process}")
        time.sleep(_POLL_SECONDS)


def _last_sentence(lines: Sequence[str]) -> str:
    """What a log says last."""
    try:
        return str(json.loads(lines[-1])["message"]) if lines else ""
    except (ValueError, KeyError, TypeError):
        return lines[-1]


def _written_in(lock: Path) -> int | None:
    """The id in the file; None while its holder has not written it yet."""
    text = read_small(lock, most=_LONGEST_ID).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None
