"""Starting and stopping the service, in this process or in one of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedlearn.deployment.server_home import ServerHome
from fedlearn.deployment.service import Service, service_process
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.programs import listens

__all__ = ["log_path", "serve", "start_in_background", "stop"]

_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.2


def log_path(home: ServerHome) -> Path:
    """What a service in the background says."""
    return home.folder / "server.log"


def serve(home: ServerHome, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError, RunFailedError: as `Service.run`.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    Service(home, tell).run(ended)
    tell("stopped")


def start_in_background(home: ServerHome) -> int:
    """Serve in a process of its own; gives its id once it serves.

    Raises:
        ConfigError: a home is served already, or a port is taken.
        RunFailedError: it does not come up.
    """
    if (holder := service_process(home)) is not None:
        raise ConfigError(f"{home.folder}: served already, by process {holder}; fedlearn server stop ends it")
    command = [sys.executable, "-m", "fedlearn.cli", "server", "start", "--home", str(home.folder.parent)]
    with log_path(home).open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(  # noqa: S603 (our own module)
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            with log_path(home).open("rb") as said:
                said.seek(began)
                lines = said.read().decode("utf-8", "replace").splitlines()
            raise RunFailedError(lines[-1].removeprefix("fedlearn: ") if lines else "the server did not start")
        if service_process(home) == process.pid and listens(home.port, home.local_host):
            return process.pid
        time.sleep(_POLL_SECONDS)
    os.kill(process.pid, signal.SIGTERM)
    raise RunFailedError(f"the server did not come up in {_START_SECONDS:.0f} s; see {log_path(home)}")


def stop(home: ServerHome) -> None:
    """End the service of a home, and wait for it.

    Raises:
        ConfigError: none serves it.
        RunFailedError: it does not end.
    """
    process = service_process(home)
    if process is None:
        raise ConfigError(f"{home.folder}: not served; there is nothing to stop")
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while service_process(home) is not None:
        if time.monotonic() > deadline:
            raise RunFailedError(f"process {process} does not end; end it with kill -9 {process}")
        time.sleep(_POLL_SECONDS)
