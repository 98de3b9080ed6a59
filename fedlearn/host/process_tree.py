"""A process and all that descend from it, sessions or not, so that none of them outlives a run."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["adopt_orphans", "descendants", "end_descendants", "end_with_input", "is_stopped", "user_of"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_PROC: Final = Path("/proc")
_ROUNDS: Final = 100
_ROUND_SECONDS: Final = 0.05


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux only: elsewhere they go to init)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """The process ids of children, grandchildren and so on of `root`, parents first."""
    parents = _parents()
    found: list[int] = []
    level = [root]
    while level:
        level = [process for process, parent in parents.items() if parent in level]
        found += level
    return found


def is_stopped(process: int) -> bool:
    """Whether a process is stopped by a signal (known on Linux alone)."""
    try:
        return _fields(_PROC / str(process))[0] in ("T", "t")
    except OSError:
        return False


def user_of(process: int) -> int | None:
    """The real user of a process; None where there is no such process here, or the system does not say."""
    try:
        lines = (_PROC / str(process) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), None)


def end_descendants() -> None:
    """Kill all descendants of this process and reap those that are its children.

    Guarantees (after `adopt_orphans`, on Linux): when this returns no descendant runs, whatever sessions, process
    groups or signal handlers they set up.
    """
    for _ in range(_ROUNDS):
        left = descendants(os.getpid())
        if not left:
            return
        for process in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        _reap()
        time.sleep(_ROUND_SECONDS)


def end_with_input(at_last: Callable[[], None] = lambda: None) -> None:
    """Kill this process and all that descends from it when standard input closes; for a thread of its own."""
    while os.read(0, 1):
        pass
    end_descendants()
    at_last()
    os.kill(os.getpid(), signal.SIGKILL)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _parents() -> dict[int, int]:
    """Every process and its parent."""
    if not (_PROC / "self/stat").is_file():
        return _parents_by_ps()
    parents: dict[int, int] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                parents[int(folder.name)] = int(_fields(folder)[1])
    return parents


def _fields(folder: Path) -> list[str]:
    """State, parent and what else the system says of a process."""
    # "pid (name) state parent ...": a name may hold spaces and brackets
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _parents_by_ps() -> dict[int, int]:
    # ps itself is among the processes listed and gone when the list is used
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)  # noqa: S607
    return {int(line.split()[0]): int(line.split()[1]) for line in listed.stdout.splitlines()}
