"""Keys, folders and databases: their modes, and who may read what."""

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedlearn.crypto.key_files import read_secret
from fedlearn.deployment.doctor.check import Check, error, ok
from fedlearn.errors import ConfigError

__all__ = ["closed_folder", "flower_home", "secret_lines"]


def secret_lines(paths: Iterable[Path]) -> Iterator[Check]:
    """Of files with keys: that they can be read, and by nobody else."""
    fine = []
    for path in paths:
        try:
            read_secret(path)
            fine.append(path.name)
        except ConfigError as problem:
            gone = f"restore {path} from a backup; docs/operations.md says what to do where there is none"
            yield error("keys", str(problem), f"chmod 600 {path}" if path.exists() else gone)
    if fine:
        yield ok("keys", f"{', '.join(fine)}: readable by their owner alone")


def closed_folder(folder: Path) -> Check:
    """Of a folder that only its owner may enter."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        return error("folder", f"{folder} has mode {mode:04o}; others may enter it", f"chmod 700 {folder}")
    return ok("folder", f"{folder} is open to its owner alone")


def flower_home(folder: Path) -> Check:
    """Of the folder in which Flower keeps its own state."""
    home = folder / "flwr"
    if not home.exists():
        return ok("flower home", f"{home}: made at the first start")
    if not home.is_dir() or home.stat().st_uid != folder.stat().st_uid:
        remedy = f"stop what runs, then remove {home}: it is made anew"
        return error("flower home", f"{home} is not a folder of the user who owns {folder}", remedy)
    return ok("flower home", f"{home} belongs to the owner of {folder.name}/")
