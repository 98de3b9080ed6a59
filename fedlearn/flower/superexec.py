"""Flower's SuperExec, whose processes for messages are forks of it: what they all import is imported once.

python -m fedlearn.flower.superexec OPTIONS OF FLOWER-SUPEREXEC

By itself it starts a Python for each message, which spends 1.2 of 1.5 processor-seconds on imports of Flower. A fork
has no more of the holder's than such a process: Flower and the pipe to the agent. It runs one message and ends.

It and all that it starts reach their server through `flower.own_socket`.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fedlearn.flower.own_socket import SOCKET_VARIABLE, altered, go_directly, program_through_socket, replace_in

__all__ = ["main", "popen_superexec"]

_IDLE_POLL_SECONDS: Final = 1.0
_RUN_SECONDS: Final = 300.0  # that a run may go on without a message
_NAME: Final = "flower-superexec"
_MESSAGE_PROGRAM: Final = "flwr-clientapp"
_TASK_PROGRAMS: Final = "flwr-"
# Fields of /proc/self/stat after the name: where the command line lies in memory.
_COMMAND_START, _COMMAND_END = 45, 46


def popen_superexec(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """How a server of Flower's starts its SuperExec: as this module."""
    if command[0] == _NAME:
        command = [sys.executable, "-P", "-m", "fedlearn.flower.superexec", *command[1:]]
    return subprocess.Popen(command, **options)  # noqa: S603 (Flower's own programs)


class _Forking:
    """How SuperExec's executor starts a program."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last_message = clock, float("-inf")

    @property
    def is_idle(self) -> bool:
        """Whether no message came for a while."""
        return self._clock() - self._last_message > _RUN_SECONDS

    def popen(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes] | None":
        """A fork for a message, which nobody waits for; another task is started as always, and finds the socket."""
        if command[0] != _MESSAGE_PROGRAM:
            if command[0].startswith(_TASK_PROGRAMS):
                command = program_through_socket(*command)
            return subprocess.Popen(command, **options)  # noqa: S603 (Flower's own programs)
        self._last_message = self._clock()
        _reap()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if os.fork() == 0:
            _run_message(command)
        return None

    def sleep(self, seconds: float) -> None:
        """The pause between two polls of SuperExec's main loop: a longer one while nothing comes."""
        time.sleep(_IDLE_POLL_SECONDS if self.is_idle else seconds)


def main() -> None:
    """Run Flower's SuperExec; never returns."""
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401 (for the forks)
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    import fedlearn.flower.node_app  # noqa: F401 (for the forks)

    go_directly(Path(os.environ[SOCKET_VARIABLE]))
    _show([_NAME, *sys.argv[1:]])
    forking = _Forking()
    replace_in(subprocess_executor, subprocess=altered(subprocess, Popen=forking.popen))
    replace_in(run_superexec, time=altered(time, sleep=forking.sleep))
    flower_superexec()


def _run_message(command: Sequence[str]) -> None:
    """Be the process of one message; never returns."""
    from flwr.supercore.exit import exit_handler
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        exit_handler.registered_exit_handlers.clear()  # SuperExec's own
        _show(command[:3])  # without the token, which opens calls
        sys.argv = list(command)
        flwr_clientapp()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _show(command: Sequence[str]) -> None:
    """Have the system show this command line for the process, as far as there is room for it (Linux alone)."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
        start, end = int(fields[_COMMAND_START]), int(fields[_COMMAND_END])
        room = end - start
        if room > 0:
            ctypes.memmove(start, "\0".join(command).encode()[: room - 1].ljust(room, b"\0"), room)


if __name__ == "__main__":
    main()
