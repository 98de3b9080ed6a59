"""Four data holders and a coordinator on this machine, started by the README's own commands."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {attributes: text for _, attributes, text in re.findall(r"```(\w*) ([^\n]+)\n(.*?)```", README, re.DOTALL)}
BIN = Path(sys.executable).parent


class RealFederation:
    """The README's federation in a folder; `holder` and `script` are its policy and its commands."""

    def __init__(self, folder: Path, *, holder: str, script: str) -> None:
        self.folder = folder
        (folder / "holder.toml").write_text(holder, encoding="utf-8")
        (folder / "demo").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The one change: ports that nobody has here.
        self.started = self.shell(script.replace("server init", f"server init --port {port}"))

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands as a person would paste them, but that the first thing that fails ends it."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )

    def operator(self, words: str) -> str:
        """What a command of the operator prints."""
        done = self.shell(f"fedlearn server {words} --home demo/operator")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`server status --json`."""
        told: dict[str, Any] = json.loads(self.operator("status --json").splitlines()[-1])
        return told

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "demo" / "operator" / "server"

    def wait(self, what: Callable[[], object], seconds: float) -> None:
        """Wait until `what` is true."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds} s; {(self.server / 'server.log').read_text()}"
            time.sleep(0.5)

    def end(self) -> None:
        """The README's last block; nothing of it may be left."""
        ended = self.shell(BLOCKS["run=end"])
        assert ended.returncode == 0, ended.stderr
