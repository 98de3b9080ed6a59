"""One run on Flower's own simulation runtime, with everything that belongs to it below one process.

python -m fedlearn.flower.superlink RUN_FOLDER NODES
  ├ python -m fedlearn.simulation.serve           the agents, behind their socket
  ├ superlink_gate --simulation              Flower's SuperLink; below it: SuperExec, the ServerApp, Ray and its actors
  └ flwr run --stream                        submits the bundle; ends when the run has ended

It ends when the run ends, when a part ends before its time, or when its standard input closes: so all of it goes when
`simulate` goes, be it by Ctrl-C, an exception or kill -9. On its way out it kills every descendant: a process group
would not do, for SuperLink gives SuperExec, and with it Ray, a session of their own.

All state of Flower and Ray lies in one short temporary folder, and so do the sockets of the agents and of SuperLink:
the path of a Unix-domain socket holds about 100 bytes, Ray's own sockets need most of them, and a run folder may lie
anywhere. The run folder holds the address of the agents' socket instead.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import tomli_w

from fedlearn.errors import RunFailedError
from fedlearn.flower.node_app import ADDRESS_FILE
from fedlearn.flower.own_socket import SOCKET_VARIABLE, program_through_socket
from fedlearn.flower.programs import copy_bundle_sources, flower_environment, private_folder
from fedlearn.holder.socket import is_answering
from fedlearn.host.process_tree import adopt_orphans, end_descendants
from fedlearn.run.checkpoint import RunFolder, load_run
from fedlearn.run.failure import record_failure

__all__ = ["LOG_FILE", "main"]

LOG_FILE: Final = "ray.log"

# Actors only carry bytes to agents that answer one request at a time: two keep them busy on any machine.
_ACTORS: Final = 2
_POLL_SECONDS: Final = 0.1
_START_SECONDS: Final = 600.0
_AGENTS_END_SECONDS: Final = 5.0
# Nobody listens there: what is asked goes to the socket.
_ADDRESS: Final = "127.0.0.1:1"
_SOCKET: Final = "superlink.sock"


def main(run_folder: Path, nodes: int) -> None:
    """Run the run in `run_folder` over `nodes` simulated nodes; what went wrong is written down in the folder."""
    folder = RunFolder(run_folder)
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = private_folder()
    try:
        with folder.file(LOG_FILE).open("ab") as log:
            _Run(folder, place, log).run(nodes)
    except RunFailedError as error:
        record_failure(folder, error)
    finally:
        folder.file(ADDRESS_FILE).unlink(missing_ok=True)
        end_descendants()
        shutil.rmtree(place, ignore_errors=True)


class _Run:
    """The processes of one run; `place` is its temporary folder."""

    def __init__(self, folder: RunFolder, place: Path, log: IO[bytes]) -> None:
        self._folder, self._place, self._log = folder, place, log
        self._ray_address = load_run(folder.file("config.toml")).runtime.ray_address
        self._environment = _environment(place, self._ray_address)
        self._abandoned = threading.Event()
        threading.Thread(target=self._watch_input, daemon=True).start()

    def run(self, nodes: int) -> None:
        """Return when the run has ended, or when whoever started this has.

        Raises:
            RunFailedError: a part did not start, or ended before its time.
        """
        address = self._place / "agents.sock"
        serve = [sys.executable, "-P", "-m", "fedlearn.simulation.serve", str(self._folder.path), str(address)]
        agents = self._start(serve, stdin=subprocess.PIPE)
        superlink = self._start(self._superlink(), stdin=subprocess.PIPE)  # it ends with its input
        parts = {"the process of the agents": agents, "flower-superlink": superlink}
        try:
            self._wait(
                lambda: is_answering(self._place / _SOCKET) and is_answering(address), parts, seconds=_START_SECONDS
            )
            self._folder.write(ADDRESS_FILE, str(address).encode())
            submission = self._start(self._submission(nodes))
            self._wait(lambda: submission.poll() is not None, parts)
        finally:
            _end_agents(agents)
        if submission.returncode:
            raise self._failed("Flower did not take the run")

    def _superlink(self) -> list[str]:
        options = ["--insecure", "--simulation", "--disable-runtime-dependency-installation"]
        host, _, port = _ADDRESS.partition(":")
        command = [sys.executable, "-P", "-m", "fedlearn.flower.superlink_gate", *options]
        return [*command, "--host", host, "--port", port]

    def _submission(self, nodes: int) -> list[str]:
        bundle, overrides = self._place / "fedlearn-app", self._place / "overrides.toml"
        copy_bundle_sources(bundle)
        # A file, because a path may hold quotes that Flower's key="value" cannot.
        overrides.write_text(tomli_w.dumps({"config": str(self._folder.file("config.toml"))}), encoding="utf-8")
        home = self._place / "flwr"
        home.mkdir(exist_ok=True)
        connection = {"address": _ADDRESS, "insecure": True}
        superlink = {"default": "run", "run": connection}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": superlink}), encoding="utf-8")
        federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
        if self._ray_address is None:
            federation += f" init-args-num-cpus={_ACTORS} init-args-log-to-driver=false"
        options = ["--run-config", str(overrides), "--federation-config", federation, "--stream"]
        return program_through_socket("flwr", "run", str(bundle), "run", *options)

    def _start(self, command: Sequence[str], *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        out = self._log
        return subprocess.Popen(command, stdin=stdin, stdout=out, stderr=out, env=self._environment)  # noqa: S603 (ours)

    def _wait(
        self, done: Callable[[], bool], parts: Mapping[str, subprocess.Popen[bytes]], *, seconds: float = float("inf")
    ) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            for name, part in parts.items():
                if part.poll() is not None:
                    raise self._failed(f"{name} ended before its time (exit code {part.returncode})")
            if time.monotonic() > deadline:
                raise self._failed(f"{' and '.join(parts)} did not start within {seconds:.0f} s")
            if self._abandoned.wait(_POLL_SECONDS):
                sys.exit(0)

    def _failed(self, what: str) -> RunFailedError:
        return RunFailedError(f"{what}; what it said stands in {self._folder.file(LOG_FILE)}")

    def _watch_input(self) -> None:
        while os.read(0, 1):  # not sys.stdin: a thread that holds its lock would break the interpreter's own end
            pass
        self._abandoned.set()


def _end_agents(agents: subprocess.Popen[bytes]) -> None:
    """Let them end the request under way and close the ledger; who is not ready then is killed with the rest."""
    assert agents.stdin is not None
    agents.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        agents.wait(_AGENTS_END_SECONDS)


def _environment(place: Path, ray_address: str | None) -> dict[str, str]:
    """No telemetry, no update check, nothing outside of `place`, no stranger on Ray's ports, which listen to all."""
    ours = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(place), SOCKET_VARIABLE: str(place / _SOCKET)}
    environment = flower_environment(place / "flwr") | ours
    if ray_address is not None:
        return environment | {"RAY_ADDRESS": ray_address}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")} | ours
    return environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
