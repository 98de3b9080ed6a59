"""A workload as every contestant sees it: its TOML file, the same records and divisions, and how a round is reported.

Needs numpy and the standard library alone, for the peers live in an environment without fedlearn. The records are two
files that `engines.py` writes once: features.npy (n, 1, 28, 28) float32 and labels.npy (n,) int64.
"""

import argparse
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDER", "Given", "Workload", "given", "load_records", "load_workload", "round_done", "started"]

FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a round is made of."""

    name: str
    population: int
    cohort: int
    records: int  # of a client
    batch_size: int
    learning_rate: float
    record_clip: float | None  # DP-SGD: each record's gradient; None where records are not clipped
    delta: float | None  # of the guarantee; None without one
    client_clip: float | None  # DP-FedAvg: each client's update; None where clients are not clipped for privacy


@dataclass(frozen=True, slots=True)
class Given:
    """A contestant's command line."""

    workload: Workload
    data: Path
    rounds: int
    device: str
    options: tuple[str, ...]


def load_workload(name: str) -> Workload:
    """The workload W1 to W4, read from w1.toml to w4.toml."""
    values = tomllib.loads((FOLDER / f"{name.lower()}.toml").read_text(encoding="utf-8"))
    training, mode = values["training"], values["privacy"]["mode"]
    return Workload(
        name=name,
        population=values["data"]["population_size"],
        cohort=values["secure_aggregation"]["planned_cohort"],
        records=60_000 // values["data"]["population_size"],
        batch_size=training["batch_size"],
        learning_rate=training["learning_rate"],
        record_clip=values["privacy"]["max_grad_norm"] if mode == "record-local" else None,
        delta=values["privacy"].get("delta"),
        client_clip=values["privacy"]["clipping_norm"] if mode.startswith("client-") else None,
    )


def load_records(folder: Path, *, mapped: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and labels in the order of the clients: client k holds records k n to (k + 1) n - 1."""
    mode = "r" if mapped else None
    return np.load(folder / "features.npy", mmap_mode=mode), np.load(folder / "labels.npy")


def given() -> Given:
    """The command line that `engines.py` gives to each contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("data", type=Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("device")
    parser.add_argument("options", nargs="*")
    values = parser.parse_args()
    return Given(load_workload(values.workload), values.data, values.rounds, values.device, tuple(values.options))


def started() -> None:
    """Say that the first round begins."""
    _say("start")


def round_done() -> None:
    """Say that a round is over; `engines.py` reads the clocks when it hears of it."""
    _say("round")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()
