"""Four data holders and a coordinator on this machine, started by the commands of the operator's tutorial."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlearn.deployment.starting import holder_process
from fedlearn.host.process_tree import descendants
from tests.e2e.proxy import Proxy
from tests.pages import PAGES, ROOT, named_blocks

FEDERATION_PAGES = [page for page in PAGES if "run=federation" in named_blocks(page)]
BLOCKS = named_blocks(FEDERATION_PAGES[0])
BIN = Path(sys.executable).parent
NAMES = ("Ada", "Ben", "Cleo", "Dora")

# The parts of a federation, by what stands in their command lines.
AGENT, NODE, MESSAGE, EXECUTOR = "fedlearn.holder.deployed", "fedlearn.flower.supernode", "flwr-clientapp", "superexec"
SUPERLINK, COORDINATOR = "superlink_gate", "flwr-serverapp"


class RealFederation:
    """A page's federation in a folder; `holder` and `script` are its policy and its commands, `ending` what ends it.

    With `proxied`, each node comes to its coordinator through a proxy of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        holder: str = BLOCKS["file=holder.toml"],
        script: str = BLOCKS["run=federation"],
        ending: str = BLOCKS["run=end"],
        proxied: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.proxies = folder, dict[str, Proxy]()
        self._environment, self._ending = dict(environment or {}), ending
        (folder / "holder.toml").write_text(holder, encoding="utf-8")
        (folder / "demo").mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The one change: ports that nobody has here.
        joining, sha, starting = script.replace("server init", f"server init --port {port}").partition("sha()")
        self.started = self.shell(joining)
        if self.started.returncode == 0 and sha:
            for name in NAMES if proxied else ():
                self._put_between(name)
            self.started = self.shell(sha + starting)

    def _put_between(self, name: str) -> None:
        joined = self.home(name) / "server.toml"
        text = joined.read_text()
        (upstream,) = re.findall(r'(?m)^address = "(.*)"$', text)
        self.proxies[name] = proxy = Proxy(upstream, self.server)
        joined.write_text(text.replace(f'\naddress = "{upstream}"', f'\naddress = "{proxy.address}"'))

    def shell(self, script: str, *, seconds: float = 1200, **more: str) -> subprocess.CompletedProcess[str]:
        """Run commands as a person would paste them, but that the first thing that fails ends it."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **self._environment, **more}
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def operator(self, words: str) -> str:
        """What a command of the operator prints."""
        return self._printed(f"fedlearn server {words} --home demo/operator")

    def client(self, name: str, words: str) -> str:
        """What a command of a holder prints."""
        return self._printed(f"fedlearn client {words} --home demo/{name}")

    def _printed(self, command: str) -> str:
        done = self.shell(command, seconds=240)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`server status --json`."""
        told: dict[str, Any] = json.loads(self.operator("status --json").splitlines()[-1])
        return told

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "demo" / "operator" / "server"

    def home(self, name: str) -> Path:
        """A holder's folder."""
        return self.folder / "demo" / name / "client"

    def holder(self, name: str) -> int | None:
        """The process of a holder's `client start`."""
        return holder_process(self.home(name))

    def of_holder(self, name: str, program: str) -> list[int]:
        """The processes of a holder that run this program."""
        supervisor = self.holder(name)
        return [] if supervisor is None else _running(supervisor, program)

    def of_operator(self, program: str) -> list[int]:
        """The processes of the coordinator that run this program."""
        service = self.service
        return [] if service is None else _running(service, program)

    @property
    def service(self) -> int | None:
        """The process of `server start`."""
        text = (self.server / "service.lock").read_text().strip()
        return int(text) if text and is_alive(int(text)) else None

    def begin(self, *settings: str) -> Path:
        """Book a run of the shipped example; gives its folder."""
        words = " ".join(f"--set '{setting}'" for setting in settings)
        run = self.operator(f"run demo/operator/server/run.example.toml {words}").split()[-1]
        return self.server / "runs" / run

    def online(self) -> set[str]:
        """The members whose nodes the SuperLink has heard of lately."""
        return {name for name, state in self.status()["members"].items() if state == "online"}

    def wait(self, what: Callable[[], object], seconds: float) -> None:
        """Wait until `what` is true."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds} s; {(self.server / 'server.log').read_text()}"
            time.sleep(0.5)

    def end(self) -> None:
        """The page's last block; nothing of it may be left."""
        ended = self.shell(self._ending)
        for proxy in self.proxies.values():
            proxy.close()
        assert ended.returncode == 0, ended.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def check_finished(federation: RealFederation, folder: Path, *, rounds: int = 3, seconds: float = 900) -> None:
    """Every round once, and every attempt that asked for vectors booked once."""
    federation.wait(lambda: (folder / "summary.json").is_file(), seconds)
    federation.wait(lambda: federation.status()["runs"][-1]["state"] == "finished", 60)
    assert [line["round"] for line in lines(folder / "metrics.jsonl")] == list(range(1, rounds + 1))
    asked = [(line["round"], line["attempt"]) for line in lines(folder / "events.jsonl")]
    assert len(asked) == len(set(asked))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["attempts"] == len(asked)


def is_alive(process: int) -> bool:
    """Whether a process runs, a zombie not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(process: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(process, how)


def _running(root: int, program: str) -> list[int]:
    found = []
    for process in descendants(root):
        try:
            line = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if program.encode() in line and is_alive(process):
            found.append(process)
    return found
