"""Starting and stopping the service, in this process or in one of its own."""

import time
from pathlib import Path
from typing import Final

from fedlearn.deployment import background
from fedlearn.deployment.service import Service, served_already, service_lock, service_process
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError
from fedlearn.flower.programs import listens
from fedlearn.host.logs import Tell

__all__ = ["await_endpoint", "log_path", "serve", "start_in_background", "stop"]

_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
_NOTICE_SECONDS: Final = 15.0


def log_path(home: ServerHome) -> Path:
    """What a service in the background says."""
    return home.folder / "server.log"


def serve(home: ServerHome, tell: Tell, *, metrics_port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; with a `metrics_port`, with counts for Prometheus there.

    Raises:
        ConfigError: the port of the counts is one that clients use.
        ConfigError, RunFailedError: as `Service.run`.
    """
    _check_metrics_port(home, metrics_port)
    ended = background.until_told()
    Service(home, tell, metrics_port=metrics_port).run(ended)
    tell("stopped")


def start_in_background(home: ServerHome, *, metrics_port: int | None = None) -> int:
    """The same in a process of its own; gives its id once it serves.

    Raises:
        ConfigError: a home is served already, or the port of the counts is one that clients use.
        RunFailedError: it does not come up.
    """
    _check_metrics_port(home, metrics_port)
    if (holder := service_process(home)) is not None:
        raise ConfigError(served_already(home, holder))
    metrics = [] if metrics_port is None else ["--metrics-port", str(metrics_port)]
    return background.start_in_background(
        ["server", "start", "--home", str(home.folder.parent), *metrics],
        log_path(home),
        is_up=lambda process: service_process(home) == process and listens(home.port, home.local_host),
        seconds=_START_SECONDS,
        party="server",
    )


def _check_metrics_port(home: ServerHome, port: int | None) -> None:
    if port in (home.port, home.join_port):
        what = "connect" if port == home.port else "join"
        raise ConfigError(f"--metrics-port {port}: the port where clients {what}; name another one")


def await_endpoint(home: ServerHome) -> None:
    """Wait a little until a service that is up has seen that somebody is awaited, so that a code is good at once."""
    deadline = time.monotonic() + _NOTICE_SECONDS
    while service_process(home) and not listens(home.join_port, home.local_host) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def stop(home: ServerHome) -> None:
    """End the service of a home, and wait for it.

    Raises:
        ConfigError: none serves it.
        RunFailedError: it does not end.
    """
    otherwise = f"{home.folder}: not served; there is nothing to stop"
    background.stop(service_lock(home), seconds=_STOP_SECONDS, otherwise=otherwise)
