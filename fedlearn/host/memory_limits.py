"""Whether a machine has room for a run's messages, asked before it begins (docs/specification/faults.md F13 and F16).

A message is one client's vector or the model: so many bytes an entry. What Flower and we hold of one at a time was
measured: a client 4 times its size, the coordinator 6 times, beside what the processes need anyway.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedlearn.errors import ConfigError

__all__ = [
    "MODELS_KEPT",
    "MOST_MESSAGE_BYTES",
    "Room",
    "check_coordinator_room",
    "check_holder_room",
    "is_disk_full",
]

# A holder keeps so many final models.
MODELS_KEPT: Final = 16

MOST_MESSAGE_BYTES: Final = 200 * 10**6
_SPARE_MEMORY_BYTES: Final = 300 * 10**6
_COORDINATOR_SPARE_DISK_BYTES: Final = 10**9
_HOLDER_SPARE_DISK_BYTES: Final = 10**8
_FULL_DISK_BYTES: Final = 10**8
_UNLIMITED: Final = 1 << 62
_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """What is free, in bytes: of the file system, and of memory that could be had without swapping."""

    disk: int
    memory: int

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Of the file system that `folder` is on and of this process's control group."""
        return cls(shutil.disk_usage(folder).free, min([_available(), *_left_in_groups()]))


def check_coordinator_room(room: Room, *, message: int, cohort: int) -> None:
    """Refuse a run that would fill the coordinator's machine; `message` in bytes, one from each of `cohort` clients.

    Raises:
        ConfigError: with the figures.
    """
    _check(room, message, disk=3 * (1 + cohort) * message + _COORDINATOR_SPARE_DISK_BYTES, copies=6)


def check_holder_room(room: Room, *, message: int) -> None:
    """Refuse a run that would fill a holder's machine; `message` in bytes.

    Raises:
        ConfigError: with the figures.
    """
    _check(room, message, disk=(3 + MODELS_KEPT) * message + _HOLDER_SPARE_DISK_BYTES, copies=4)


def is_disk_full(folder: Path) -> bool:
    """Whether nothing should be started that writes there."""
    return shutil.disk_usage(folder).free < _FULL_DISK_BYTES


def _check(room: Room, message: int, *, disk: int, copies: int) -> None:
    if message > MOST_MESSAGE_BYTES:
        raise ConfigError(
            f"a client's message would have {message / 1e6:.0f} MB; expected at most "
            f"{MOST_MESSAGE_BYTES / 1e6:.0f} MB: take a smaller model"
        )
    if room.disk < disk:
        raise ConfigError(
            f"{room.disk / 1e9:.1f} GB of disk are free; the run needs {disk / 1e9:.1f} GB: make room first"
        )
    memory = copies * message + _SPARE_MEMORY_BYTES
    if room.memory < memory:
        raise ConfigError(f"{room.memory / 1e9:.1f} GB of memory are free; the run needs {memory / 1e9:.1f} GB")


def _available() -> int:
    """Bytes of the whole machine; very many where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _UNLIMITED
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), _UNLIMITED)


def _left_in_groups() -> Iterator[int]:
    """Bytes up to each limit of this process's control groups, file cache not counted: a container's, a service's."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be one of outside, and its group is then the top.
        for group in {top, top / path.lstrip("/"), *(top / path.lstrip("/")).parents}:
            if group.is_relative_to(top):
                yield _left_in(group, limit, used)


def _left_in(group: Path, limit: str, used: str) -> int:
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return _UNLIMITED
    cache = int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    return _UNLIMITED if most == "max" else max(0, int(most) - now + cache)
