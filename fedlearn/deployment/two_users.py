"""`fedlearn client start` as root: agent and node each under its own user, each with a supervisor of its own.

Root itself reads and writes nothing of theirs: it starts the two as their systemd units would, and ends both together.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from fedlearn.deployment import background
from fedlearn.deployment.users import Users, check_can_run
from fedlearn.errors import RunFailedError
from fedlearn.host.logs import Tell

__all__ = ["run_as_two_users"]

_PR_SET_PDEATHSIG: Final = 1
_TICK_SECONDS: Final = 0.2
_PASSED: Final = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
_PASSED_KINDS: Final = ("LC_", "PYTHON", "FEDLEARN_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_")
_END_SECONDS: Final = 35.0


def run_as_two_users(home: Path, tell: Tell) -> None:
    """Run both until SIGTERM or SIGINT, or until one of them ends.

    Raises:
        ConfigError: a user is missing or cannot run this program.
        RunFailedError: one of them ended by itself.
    """
    users, ended = Users.find(), background.until_told()
    for account in (users.agent, users.node):
        check_can_run(account, {users.group})
    sides = {
        "agent": _start(home, "agent", users.agent, users.group, home / "client"),
        "node": _start(home, "node", users.node, users.group, home / "node"),
    }
    try:
        while not ended.wait(_TICK_SECONDS):
            for name, process in sides.items():
                if (code := process.poll()) is not None:
                    raise RunFailedError(
                        f"the side of the {name} has ended with code {code}; what it said stands above"
                    )
    finally:
        _end(list(sides.values()))
    tell("stopped")


def _start(home: Path, only: str, account: pwd.struct_passwd, group: int, folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "fedlearn.cli", "client", "start", "--only", only, "--home", str(home)]
    return subprocess.Popen(  # noqa: S603 (our own command)
        command,
        stdin=subprocess.DEVNULL,
        env=_environment() | {"HOME": str(folder), "USER": account.pw_name, "LOGNAME": account.pw_name},
        cwd="/",
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[group],
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _environment() -> dict[str, str]:
    """Of root's environment what a program needs to run here: the rest, where secrets may be, is not the node's."""
    return {
        name: value for name, value in os.environ.items() if name.upper() in _PASSED or name.startswith(_PASSED_KINDS)
    }


def _end_with_parent() -> None:
    """Runs in the child, after it became its user: SIGTERM when whoever started it dies, in whatever way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
