"""The whole examination: of the installation, and of whatever homes there are."""

import os
from collections.abc import Iterator
from pathlib import Path

from fedlearn.config.run_config import RunConfig
from fedlearn.deployment.doctor.check import Check, error, looked
from fedlearn.deployment.doctor.coordinator import check_coordinator
from fedlearn.deployment.doctor.holder import check_holder
from fedlearn.deployment.doctor.installation import check_installation

__all__ = ["examine"]


def examine(home: Path, run: Path | None = None) -> Iterator[Check]:
    """Look at what is installed, and at `server/` and `client/` of a home where they are; nothing is changed.

    `run` is a run's file, or the name of a shipped scenario: then machine, policy and records are judged by it.

    Raises:
        ConfigError: `run` cannot be read.
    """
    config = RunConfig.load(run) if run is not None else None
    device = config.runtime.device if config else "auto"
    yield from looked("installation", "install fedlearn again", lambda: check_installation(device))
    for name, check in (("server", check_coordinator), ("client", check_holder)):
        if not (home / name).is_dir():
            continue
        if _may_enter(home / name):
            yield from check(home, run)
        else:
            told = f"{home / name} is not open to this user"
            yield error("folder", told, "run this as root, or as the owner of the folder")


def _may_enter(folder: Path) -> bool:
    try:
        with os.scandir(folder):
            return True
    except PermissionError:
        return False
