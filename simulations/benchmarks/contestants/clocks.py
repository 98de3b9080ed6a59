"""Clocks and meters of Linux: time and memory of a whole process tree, what else runs, what a core can do.

Processor time is user + system, of all processes below one and of those of them that have ended.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["busy_seconds", "descendants", "matmul_peak", "tree_megabytes", "tree_seconds"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PRODUCT = 1024  # rows and columns of the matrices of `matmul_peak`


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it."""
    parents = {int(folder.name): _parent(folder) for folder in _processes()}
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def tree_seconds(pid: int) -> float:
    """Processor seconds of the tree of `pid` so far."""
    return sum(_ticks(process) for process in descendants(pid)) / _TICKS


def tree_megabytes(pid: int) -> float:
    """Memory of the tree of `pid`: now (proportional set sizes), or the most `pid` itself ever had, if that is more."""
    together = sum(_kilobytes(f"/proc/{process}/smaps_rollup", "Pss:") for process in descendants(pid))
    return max(together, _kilobytes(f"/proc/{pid}/status", "VmHWM:")) / 1024


def busy_seconds() -> float:
    """Processor seconds of everything on this machine since it started."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def matmul_peak() -> float:
    """GFLOP per processor second of one core in PyTorch's float32 matrix product, the best of 12."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.full((2, _PRODUCT, _PRODUCT), 0.5).unbind()
    seconds = []
    for _ in range(12):
        began = time.thread_time()
        left @ right
        seconds.append(time.thread_time() - began)
    return 2 * _PRODUCT**3 / min(seconds) / 1e9


def _processes() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _fields(folder: Path) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none for a process that is gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(folder: Path) -> int:
    fields = _fields(folder)
    return int(fields[1]) if fields else 0


def _ticks(pid: int) -> int:
    fields = _fields(Path(f"/proc/{pid}"))
    return sum(map(int, fields[11:15])) if fields else 0


def _kilobytes(file: str, key: str) -> int:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
