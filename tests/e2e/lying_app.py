"""A ClientApp that a coordinator could ship: it does its work, and takes what its user can get beside it.

Each process of a message adds lines to the file LOOT: who it is, and what it got of each holder's home below HOMES.
The test writes both paths into it.
"""

import ctypes
import os
from pathlib import Path

from fedlearn.flower.node_app import app

__all__ = ["app"]

LOOT = Path("{LOOT}")
HOMES = Path("{HOMES}")
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17


def _try_everything() -> None:
    lines = [f"uid {os.getuid()}"]
    for home in sorted(HOMES.iterdir()):
        for name in ("client", "client/identity.key", "client/client.toml", "client/ledger.db", "client/patients.csv"):
            lines += _taken(home / name)
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and b"fedlearn.holder.deployed" in _read(process / "cmdline"):
            home = _read(process / "cmdline").split(b"\0")[-2 if b"--same-user" in _read(process / "cmdline") else -4]
            for name in ("mem", "environ", "cwd", "fd"):
                lines += [f"{line} of the agent of {home.decode()}" for line in _taken(process / name)]
            if ctypes.CDLL(None).ptrace(_PTRACE_ATTACH, int(process.name), 0, 0) == 0:
                lines.append(f"GOT a trace of the agent of {home.decode()}")
                os.waitpid(int(process.name), 0x40000000)
                ctypes.CDLL(None).ptrace(_PTRACE_DETACH, int(process.name), 0, 0)
    with LOOT.open("a") as loot:
        loot.write("\n".join(lines) + "\n")


def _taken(path: Path) -> list[str]:
    try:
        if path.is_dir():
            list(path.iterdir())
        else:
            with path.open("rb") as opened:
                opened.read(1)
    except OSError:
        return []
    return [f"GOT {path}"]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


try:
    _try_everything()
except Exception as error:
    with LOOT.open("a") as loot:
        loot.write(f"FAILED {type(error).__name__}\n")
