"""How others see that a process works on a run: it touches the file whose lock it holds.

Flower goes on to call a run "running" when the process behind it is gone, and may call one
"pending" for ever. Whoever wants to know looks here.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from fedlearn.errors import ConfigError
from fedlearn.host.durable import is_locked
from fedlearn.run.checkpoint import LOCK_FILE, RunFolder

__all__ = ["BEAT_SECONDS", "is_worked_on", "last_sign", "working"]

BEAT_SECONDS: Final = 2.0

_PATIENCE_SECONDS: Final = 3.0


@contextmanager
def working(folder: RunFolder) -> Iterator[RunFolder]:
    """Hold the run, and give a sign every `BEAT_SECONDS`; the process ends if its parent does.

    Raises:
        ConfigError: another process works on this run.
    """
    with _patiently_locked(folder) as held:
        path, ended, parent = held.file(LOCK_FILE), threading.Event(), os.getppid()

        def beat() -> None:
            os.utime(path)
            while not ended.wait(BEAT_SECONDS):
                os.utime(path)
                if os.getppid() != parent:  # nobody would hear of what this process does
                    os._exit(1)

        beating = threading.Thread(target=beat, name="sign-of-life", daemon=True)
        beating.start()
        try:
            yield held
        finally:
            ended.set()
            beating.join()


@contextmanager
def _patiently_locked(folder: RunFolder) -> Iterator[RunFolder]:
    """Whoever only looks whether the run is worked on holds the lock for a moment too."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(folder.locked())
                break
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield held


def is_worked_on(folder: RunFolder) -> bool:
    """Whether a process holds the run, be it stuck or not."""
    return is_locked(folder.file(LOCK_FILE))


def last_sign(folder: RunFolder) -> float | None:
    """The moment (seconds since the epoch) of the last sign, or None where there never was one."""
    try:
        return folder.file(LOCK_FILE).stat().st_mtime
    except OSError:
        return None
