"""A file that a coordinator touches while it works on a run, and locks, so that it is the only one.

Flower goes on to call a run "running" when the process behind it is gone (reliability.md, section 2), and may call one
"pending" for ever. Whoever wants to know looks at this file.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedlearn.errors import RunFailedError

__all__ = ["BEAT_SECONDS", "alive", "last_sign", "working"]

BEAT_SECONDS: Final = 2.0

_FILE: Final = "coordinator.alive"


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Hold the run in `folder` and touch its file every `BEAT_SECONDS`; the process ends if its parent does.

    Raises:
        RunFailedError: another process works on this run.
    """
    descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o600)
    ended = threading.Event()
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailedError(f"{folder}: another process works on this run") from None
        os.utime(descriptor)
        beat = threading.Thread(target=_beat, args=(descriptor, ended, os.getppid()), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
    finally:
        os.close(descriptor)


def alive(folder: Path) -> bool:
    """Whether a process works on the run, be it stuck or not."""
    try:
        descriptor = os.open(folder / _FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def last_sign(folder: Path) -> float | None:
    """The moment (seconds since the epoch) of the last sign, or None where there never was one."""
    try:
        return (folder / _FILE).stat().st_mtime
    except OSError:
        return None


def _beat(descriptor: int, ended: threading.Event, parent: int) -> None:
    while not ended.wait(BEAT_SECONDS):
        os.utime(descriptor)
        if os.getppid() != parent:  # nobody would hear of what this process does
            os._exit(1)
