"""What the coordinator of a run is given, and what it gives: the data as it may know it, its optimizer, its results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attempts import Receive
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.run.checkpoint import Progress

__all__ = ["Ask", "Evaluate", "OnRound", "RoundResult", "RunData", "ServerOptimizer"]


class ServerOptimizer(Protocol):
    """One of Flower's strategies, fed with the one aggregated reply."""

    def step(self, round_number: int, weights: Vector, update: Vector) -> Vector:
        """The next weights, (d,) float64."""

    def state(self) -> dict[str, NDArray[np.float64]]:
        """What a checkpoint must hold of it."""

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take up a state."""


class RunData(Protocol):
    """What a coordinator knows of a run's data: its schema and size on paper, public test data, never a record."""

    @property
    def config(self) -> RunConfig:
        """The run."""

    @property
    def plan(self) -> Plan:
        """What its noise, divisors and guarantee are."""

    @property
    def population_size(self) -> int:
        """Clients that may be asked."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a record as the model sees it."""

    @property
    def test(self) -> Dataset | None:
        """Public held-out records as the model sees them."""

    def build_model(self, config: RunConfig) -> nn.Module:
        """A model with the start weights of `run.seed`."""


class Ask(Protocol):
    """Sends members (positions in the roster) one stage's bodies and hands on the replies that come in time."""

    def __call__(self, stage: str, progress: Progress, bodies: Mapping[int, bytes], receive: Receive) -> None: ...


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one successful round gave; a line of metrics.jsonl. Scores are None where no public test data is known."""

    round: int
    attempt: int
    asked: int
    survivors: int
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    seconds: float


Evaluate = Callable[[Vector], tuple[float, float] | None]
OnRound = Callable[[RoundResult], None]
