"""Flower's own programs: where they are, and what environment they run in."""

import os
import shutil
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from fedlearn.errors import RunFailedError
from fedlearn.host.shipped import shipped_root

__all__ = ["copy_bundle_sources", "flower_environment", "flower_program", "free_port", "listens", "private_folder"]

# The path of a socket holds 107 bytes, and Ray appends some 75 for its own; 104 is the least that any platform allows.
_LONGEST_TEMPORARY_FOLDER: Final = 14


def copy_bundle_sources(destination: Path) -> None:
    """Copy what a bundle is built from, and nothing else, to `destination` (its name: letters, digits, hyphens)."""
    root = shipped_root()
    for party in ("clients", "server"):
        (destination / party).mkdir(parents=True)
        for name in ("__init__.py", "app.py"):
            shutil.copyfile(root / party / name, destination / party / name)
    shutil.copyfile(root / "pyproject.toml", destination / "pyproject.toml")


def flower_environment(home: Path) -> dict[str, str]:
    """This process's environment with `home` for Flower: no telemetry, no update check, no proxies.

    What Flower's programs reach is this machine and the coordinator, and neither by way of a proxy
    (`flower.own_socket`).
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and not name.upper().endswith("_PROXY")
    }
    return environment | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Flower looks for its other programs on the path, which need not hold those of this environment.
        "PATH": os.pathsep.join([*_script_folders(), environment.get("PATH", os.defpath)]),
    }


def flower_program(name: str) -> str:
    """The path of one of Flower's programs.

    Raises:
        RunFailedError: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([*_script_folders(), os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise RunFailedError(f"{name} was not found beside {sys.executable} nor on PATH; install 'fedlearn[ray]'")
    return found


def free_port() -> int:
    """A port of this machine's loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether anybody accepts connections at a port of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def private_folder() -> Path:
    """A new temporary folder that nobody else may enter, with a path short enough for sockets in it."""
    usual = tempfile.gettempdir()
    short = len(usual) <= _LONGEST_TEMPORARY_FOLDER or not Path("/tmp").is_dir()  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="fl-", dir=usual if short else "/tmp"))  # noqa: S108


def _script_folders() -> list[str]:
    return [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
