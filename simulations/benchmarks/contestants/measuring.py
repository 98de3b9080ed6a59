"""Processes of contestants, measured from outside: when each says that a round is over, the clocks are read."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from contestants.clocks import busy_seconds, tree_megabytes, tree_seconds
from fedlearn.data import load_dataset
from fedlearn.data.dataset import DataOptions

__all__ = ["PEERS", "Contestant", "Figures", "machine", "measure", "print_table", "write_records"]

FOLDER = Path(__file__).resolve().parents[1]
PEERS = FOLDER.parents[1] / ".peers/bin/python"
LONGEST_SECONDS = 600  # of one contestant
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine: a module of `contestants`, whose Python runs it, its options, and the workloads that it can do."""

    module: str
    peer: bool
    options: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ("W1", "W2", "W3", "W4")


@dataclass(slots=True)
class Figures:
    """What was measured of one engine on one workload."""

    wall: list[float] = field(default_factory=list)  # seconds a round
    cpu: list[float] = field(default_factory=list)  # processor seconds a round
    others: list[float] = field(default_factory=list)  # cores that something else kept busy meanwhile
    start: list[float] = field(default_factory=list)  # seconds from the start of the process to the end of round 1
    megabytes: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Medians, as the table shows them."""
        return {
            "wall": round(median(self.wall), 3),
            "cpu": round(median(self.cpu), 3),
            "cpu_least": round(min(self.cpu), 3),
            "first_round_after": round(median(self.start), 1),
            "peak_mb": round(self.megabytes),
            "busy_with_others": round(median(self.others), 2),
        }


def write_records(folder: Path) -> None:
    """The 60,000 records of Fashion-MNIST in a random order, so that every client's part is a random one."""
    train = load_dataset(DataOptions(dataset="fashion-mnist")).train
    order = np.random.default_rng(0).permutation(len(train))
    np.save(folder / "features.npy", train.features[order])
    np.save(folder / "labels.npy", train.labels[order])


def measure(
    figures: Figures, workload: str, contestant: Contestant, data: Path, rounds: int, device: str = "cpu"
) -> None:
    """One process of a contestant: a first round that is not counted, then `rounds`."""
    began = time.perf_counter()
    process = subprocess.Popen(
        _command(workload, contestant, data, rounds + 1, device),
        env=_environment(device),
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stderr or []), daemon=True).start()
    watch = threading.Thread(target=_watch_memory, args=(process, figures), daemon=True)
    watch.start()
    killer = threading.Timer(LONGEST_SECONDS, process.kill)
    killer.start()
    before, count = None, 0
    for line in process.stdout or []:
        if line.strip() != "round":
            continue
        now = (time.perf_counter(), tree_seconds(process.pid), busy_seconds())
        if before is None:
            figures.start.append(now[0] - began)
        else:
            wall, cpu, busy = (b - a for a, b in zip(before, now, strict=True))
            figures.wall.append(wall)
            figures.cpu.append(cpu)
            figures.others.append(max(0.0, busy - cpu) / wall)
        before, count = now, count + 1
    process.wait()
    killer.cancel()
    watch.join()
    if count <= rounds:
        raise RuntimeError(f"{contestant.module} on {workload} ended after {count} rounds:\n{''.join(said[-30:])}")


def _command(workload: str, contestant: Contestant, data: Path, rounds: int, device: str) -> list[str]:
    python = PEERS if contestant.peer else Path(sys.executable)
    return [
        str(python),
        "-m",
        f"contestants.{contestant.module}",
        workload,
        str(data),
        str(rounds),
        device,
        *contestant.options,
    ]


def _environment(device: str) -> dict[str, str]:
    """Peers need the benchmarks' folder alone; nobody reports home, and OpenBLAS and MKL choose their own kernels."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    paths = [str(FOLDER), str(FOLDER.parents[1])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PFL_PYTORCH_DEVICE": device,
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _watch_memory(process: subprocess.Popen[str], figures: Figures) -> None:
    while process.poll() is None:
        figures.megabytes = max(figures.megabytes, tree_megabytes(process.pid))
        time.sleep(SAMPLE_SECONDS)


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "flwr", "ray", "opacus", "numpy")}
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def print_table(stated: Mapping[str, object]) -> None:
    """A table for people, on stderr."""
    engines = stated["engines"]
    assert isinstance(engines, dict)
    print(
        f"{'':28}{'wall s':>9}{'cpu s':>9}{'least cpu':>11}{'1st round':>11}{'peak MB':>9}{'others':>8}",
        file=sys.stderr,
    )
    for name, row in engines.items():
        print(
            f"{name:28}{row['wall']:9.3f}{row['cpu']:9.3f}{row['cpu_least']:11.3f}{row['first_round_after']:11.1f}"
            f"{row['peak_mb']:9}{row['busy_with_others']:8.2f}",
            file=sys.stderr,
        )
    for name, value in stated.items():
        if name not in ("engines", "missed"):
            print(f"{name}: {value}", file=sys.stderr)
    for sentence in stated["missed"] if isinstance(stated["missed"], list) else ():
        print(f"MISSED: {sentence}", file=sys.stderr)
