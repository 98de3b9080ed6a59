"""Flower's SuperNode in a process that works or ends, so that whoever started it can start it again.

python -m fedlearn.flower.supernode OPTIONS OF FLOWER-SUPERNODE

By itself SuperNode stays alive when its main loop, its heartbeat or its SuperExec has ended, offline for ever, and a
message process that hangs blocks it for every later run. Here each of these ends the process, and so does a process
below it that is stopped. It gives signs of life (`fedlearn.host.heartbeat`) while the coordinator answers its polls, of
which it makes twelve times as many as by itself while a run goes on, else three times as many. Its processes for
messages are forks (`flower.superexec`), and they alone reach its interface, which opens no port (`flower.own_socket`).
It also ends, and all that it started, when its standard input closes.
"""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fedlearn.flower.own_socket import SOCKET_VARIABLE, altered, go_directly, replace_in
from fedlearn.flower.programs import private_folder
from fedlearn.flower.superexec import popen_superexec
from fedlearn.host.heartbeat import give_pulse
from fedlearn.host.process_tree import adopt_orphans, descendants, end_descendants, end_with_input, is_stopped

__all__ = ["BROKEN", "main"]

# Exit code: something that Flower goes on without has ended.
BROKEN: Final = 70

_POLL_SECONDS: Final = 0.25
_IDLE_POLL_SECONDS: Final = 1.0
_RUN_SECONDS: Final = 300.0  # that a run may go on without a message
_WATCH_SECONDS: Final = 1.0
_END_SECONDS: Final = 8.0
_GRACE_SECONDS: Final = 30.0  # beyond a message's own time, which its handler keeps to
_STOPPED_SECONDS: Final = 30.0  # that a process may be stopped
_UNANSWERED_SECONDS: Final = 20.0  # that a poll may take
_START_SECONDS: Final = 60.0
_EXECUTOR: Final = b"flower-superexec"
_MESSAGE_PROCESS: Final = b"flwr-clientapp"


class Watch:
    """Sees what SuperNode does not: `problem` says in words what ended, hangs or is stopped.

    `command_lines` are those of the processes below; `any_stopped` says whether one of them is stopped.
    """

    def __init__(
        self,
        command_lines: Callable[[], list[bytes]],
        any_stopped: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command_lines, self._any_stopped, self._clock = command_lines, any_stopped, clock
        self._had_executor = False
        self._message_over = self._stopped_over = float("inf")
        self._last_message = float("-inf")
        self._started_by, self._answer_due = clock() + _START_SECONDS, float("-inf")

    def polled(self, message_seconds: float | None) -> None:
        """The coordinator answered a poll, with a message that may take so long, or with none.

        SuperNode takes one message at a time: it polls again when the one before is done.
        """
        now = self._clock()
        self._answer_due = now + _UNANSWERED_SECONDS
        self._message_over = float("inf") if message_seconds is None else now + message_seconds + _GRACE_SECONDS
        if message_seconds is not None:
            self._last_message = now

    def pause(self) -> float:
        """Seconds between two polls: few while a run goes on, for each is work for two machines."""
        return _POLL_SECONDS if self._clock() - self._last_message < _RUN_SECONDS else _IDLE_POLL_SECONDS

    def is_starting(self) -> bool:
        """Whether it may still take a while until the coordinator has let it in."""
        return self._answer_due == float("-inf") and self._clock() <= self._started_by

    def is_well(self) -> bool:
        """Whether the coordinator let it in and answers, or a message is worked on within its time."""
        over = self._answer_due if self._message_over == float("inf") else self._message_over
        return self._clock() <= over

    def problem(self) -> str | None:
        """What is wrong now."""
        lines = self._command_lines()
        executor = any(_EXECUTOR in line for line in lines)
        if self._had_executor and not executor:
            return "its SuperExec has ended"
        self._had_executor = executor
        if self._clock() > self._message_over and any(_MESSAGE_PROCESS in line for line in lines):
            return "a message's process hangs"
        if not self._any_stopped():
            self._stopped_over = float("inf")
        elif self._clock() > self._stopped_over:
            return "one of its processes is stopped"
        else:
            self._stopped_over = min(self._stopped_over, self._clock() + _STOPPED_SECONDS)
        return None


def main() -> None:
    """Run Flower's SuperNode; never returns."""
    from flwr.supercore.retry import http_retry
    from flwr.supernode import fleet_http_connection, start_client_internal

    cli: Any = importlib.import_module("flwr.supernode.cli.flower_supernode")
    adopt_orphans()
    os.environ[SOCKET_VARIABLE] = str(private_folder() / "node.sock")
    threading.Thread(target=end_with_input, args=(_remove_folder,), daemon=True).start()
    threading.excepthook = lambda told: _break(f"a thread has ended with {told.exc_type.__name__}")
    watch = Watch(_below, lambda: any(is_stopped(process) for process in descendants(os.getpid())))
    # Short pauses find a message soon; a call that is answered 401 ends the process, and would not say why.
    pausing = altered(time, sleep=lambda seconds: time.sleep(min(seconds, watch.pause())))
    replace_in(start_client_internal, time=pausing, subprocess=altered(subprocess, Popen=popen_superexec))
    for caller in (http_retry, fleet_http_connection):
        replace_in(caller, os=altered(os, kill=_tell_and_kill))
    _tell_polls(start_client_internal, watch.polled)
    threading.Thread(target=_look_after, args=(watch,), daemon=True).start()
    go_directly(None)
    replace_in(cli, uvicorn=altered(cli.uvicorn, Config=_at_own_socket))
    give_pulse(watch.is_well, watch.is_starting)
    try:
        cli.flower_supernode()
    except SystemExit as ended:
        _end(ended.code if isinstance(ended.code, int) else 1)
    except BaseException as error:
        _tell(f"it has ended with {type(error).__name__}")
    else:
        _tell("its main loop has ended")
    _end(BROKEN)


def _at_own_socket(app: Any, *, host: str, port: int, **options: Any) -> Any:
    """How the interface for tasks is served: to whom may enter the folder of the socket, and at no port."""
    import uvicorn

    del host, port
    return uvicorn.Config(app, uds=os.environ[SOCKET_VARIABLE], proxy_headers=False, **options)


def _tell_and_kill(process: int, number: int) -> None:
    _tell("a call was answered 401 Unauthorized")
    os.kill(process, number)


def _tell_polls(module: Any, polled: Callable[[float | None], None]) -> None:
    original = module._pull_and_store_message

    def pull_and_tell(*, receive: Callable[[], Any], **others: Any) -> Any:
        def receive_and_tell() -> Any:
            came = receive()
            polled(None if came is None else came[0].metadata.ttl)
            return came

        return original(receive=receive_and_tell, **others)

    replace_in(module, _pull_and_store_message=pull_and_tell)


def _look_after(watch: Watch) -> None:
    while True:
        time.sleep(_WATCH_SECONDS)
        problem = watch.problem()
        if problem:
            _break(problem)


def _below() -> list[bytes]:
    lines = []
    for process in descendants(os.getpid()):
        with suppress(OSError):
            lines.append(Path(f"/proc/{process}/cmdline").read_bytes())
    return lines


def _break(problem: str) -> None:
    """End, from another thread than the main one: in order, so that the coordinator lets the node back in at once."""
    _tell(problem)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    _end(BROKEN)


def _tell(problem: str) -> None:
    sys.stderr.write(f"fedlearn: SuperNode is not what it should be: {problem}\n")
    sys.stderr.flush()


def _end(code: int) -> None:
    """End at once: SuperNode's own threads would keep the process."""
    end_descendants()
    _remove_folder()
    os._exit(code)


def _remove_folder() -> None:
    shutil.rmtree(Path(os.environ[SOCKET_VARIABLE]).parent, ignore_errors=True)


if __name__ == "__main__":
    main()
