"""What may be watched of a coordinator: counts of runs, rounds, attempts and nodes, as Prometheus reads them.

Guarantees:
    nothing here depends on anybody's records, and nothing is a secret: no score, no loss, no name of a member;
    the endpoint listens at 127.0.0.1 alone, answers one path, and keeps nobody waiting for longer than 5 s.

Any user of that machine can read it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

from fedlearn.deployment.runs import ENDED, BookedRun
from fedlearn.enrolment.join_endpoint import listen
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.run.checkpoint import RunFolder, load_run

__all__ = ["MetricsEndpoint", "exposition", "rounds_after"]

_PATH: Final = "/metrics"
_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HOST: Final = "127.0.0.1"
_SILENT_SECONDS: Final = 5.0
_STATES: Final = ("waiting", "running", *ENDED)
_COUNTED: Final = ("round", "attempt", "asked", "survivors")

# name, type, help
_FAMILIES: Final = {
    "fedlearn_runs": ("gauge", "Runs by state."),
    "fedlearn_run_rounds_planned": ("gauge", "Rounds that the latest run is to have."),
    "fedlearn_run_rounds_done": ("gauge", "Rounds that the latest run has done."),
    "fedlearn_run_attempts": ("gauge", "Attempts of the latest run that asked for vectors."),
    "fedlearn_run_attempts_aborted": ("gauge", "Attempts of the latest run that asked for vectors in vain."),
    "fedlearn_run_survivors": ("gauge", "Clients whose vectors the latest sum has."),
    "fedlearn_members": ("gauge", "Members of the roster that joined and are not revoked."),
    "fedlearn_nodes_online": ("gauge", "Members' nodes that Flower heard of lately."),
    "fedlearn_superlink_up": ("gauge", "Whether Flower's SuperLink runs."),
    "fedlearn_superlink_restarts": ("counter", "How often Flower's SuperLink was started again."),
    "fedlearn_certificate_seconds_left": ("gauge", "Until the server's certificate ends."),
}

Sample = tuple[str, dict[str, str], float]


def rounds_after(folder: RunFolder, number: int) -> list[dict[str, int]]:
    """Round, attempt, asked and survivors of each round that is done, after this one."""
    lines = folder.lines("metrics.jsonl")
    return [{name: int(line[name]) for name in _COUNTED} for line in lines if line["round"] > number]


def exposition(
    home: ServerHome,
    runs: Sequence[BookedRun],
    *,
    members: int,
    online: int,
    superlink_up: bool,
    superlink_restarts: int,
) -> str:
    """The text that Prometheus reads (its text format, version 0.0.4)."""
    samples: list[Sample] = [
        *(("fedlearn_runs", {"state": state}, sum(run.state == state for run in runs)) for state in _STATES),
        ("fedlearn_members", {}, members),
        ("fedlearn_nodes_online", {}, online),
        ("fedlearn_superlink_up", {}, superlink_up),
        ("fedlearn_superlink_restarts", {}, superlink_restarts),
        ("fedlearn_certificate_seconds_left", {}, round(home.certificate.ends.timestamp() - time.time())),
    ]
    # The one whose turn it is, else the last one.
    latest = next((run for run in runs if run.state not in ENDED), runs[-1] if runs else None)
    if latest is not None:
        samples += _of_run(RunFolder(home.folder / "runs" / latest.id), latest.id)
    return "".join(f"{line}\n" for line in _lines(samples))


def _of_run(folder: RunFolder, run: str) -> Iterator[Sample]:
    named = {"run": run}
    done, attempts = rounds_after(folder, 0), folder.lines("events.jsonl")
    yield "fedlearn_run_rounds_planned", named, load_run(folder.file("config.toml")).run.rounds
    yield "fedlearn_run_rounds_done", named, len(done)
    yield "fedlearn_run_attempts", named, len(attempts)
    yield "fedlearn_run_attempts_aborted", named, sum(attempt["aborted"] for attempt in attempts)
    yield "fedlearn_run_survivors", named, done[-1]["survivors"] if done else 0


def _lines(samples: Sequence[Sample]) -> Iterator[str]:
    for name, (kind, said) in _FAMILIES.items():
        values = [(labels, value) for known, labels, value in samples if known == name]
        if values:
            yield f"# HELP {name} {said}"
            yield f"# TYPE {name} {kind}"
        for labels, value in values:
            # ids of runs and states hold neither quotes nor line ends: they are ours
            marks = ",".join(f'{label}="{text}"' for label, text in labels.items())
            yield f"{name}{{{marks}}} {int(value)}" if marks else f"{name} {int(value)}"


class MetricsEndpoint:
    """Answers GET /metrics on a port of the loopback with what `read` gives, in a thread, until it is closed."""

    def __init__(self, port: int, read: Callable[[], str]) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken, or may not be used.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = _SILENT_SECONDS

            def do_GET(self) -> None:
                body, code = b"", 404
                if self.path == _PATH:
                    try:
                        body, code = read().encode(), 200
                    except Exception:  # a file that is being written, a full disk: nothing of it is told here
                        code = 503
                self.send_response_only(code)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *said: Any) -> None:
                del said

        listener = listen(_HOST, port)
        self._server = HTTPServer((_HOST, port), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
