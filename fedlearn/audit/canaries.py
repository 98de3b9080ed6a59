"""Canaries: records, or whole clients, that move the model as far as the bounds allow, each in a direction of its own.

The audited model is a linear layer with two outputs that starts at zero. A record of label 0 whose only feature is
number i has a gradient of -1/2 and +1/2 of that feature in column i, and zeros elsewhere: directions are columns.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.setting import Setting
from fedlearn.data.dataset import Dataset
from fedlearn.privacy.clipping import Vector
from fedlearn.round.contribution import Contributor
from fedlearn.task.classification import Classification

__all__ = ["Holding", "Release", "along_directions", "reach", "releases_of"]

_TOO_LONG = 3.0  # a canary is so many times as long as its bound, so that a clip that is left out shows


@dataclass(frozen=True, slots=True)
class Release:
    """Who contributes, honest clients first, and which directions (m,) hold a canary."""

    clients: tuple[Contributor, ...]
    present: NDArray[np.bool_]


def releases_of(setting: Setting) -> tuple[Release, Release]:
    """Two releases that take turns: the canaries of one are in the directions that are empty in the other."""
    return _release(setting, 0), _release(setting, 1)


def along_directions(setting: Setting, released: Vector) -> Vector:
    """How far `released` (d,) goes along each direction (m,), in units of a canary's reach."""
    first, second = released.reshape(2, -1)[:, : setting.directions]
    along: Vector = (first - second) / (math.sqrt(2) * reach(setting))
    return along


def reach(setting: Setting) -> float:
    """The L2 distance by which one canary moves what is released."""
    config, plan = setting.config, setting.agreement.plan
    if not setting.agreement.mechanism.work.of_records:
        return config.privacy.clipping_norm / float(plan.divisor)
    assert config.privacy.max_grad_norm is not None
    step = 1.0 if plan.planned_batch is None else config.training.learning_rate / float(plan.planned_batch)
    return step * config.privacy.max_grad_norm / float(plan.divisor)


def _release(setting: Setting, turn: int) -> Release:
    present = np.arange(setting.directions) % 2 == turn
    canaries = np.flatnonzero(present)
    shares = [canaries[client :: setting.honest] for client in range(setting.honest)]
    nobody = [np.zeros(0, dtype=np.int64)] * setting.colluders
    return Release(
        clients=tuple(
            Contributor(Holding(_records(setting, columns)), (turn, client))
            for client, columns in enumerate([*shares, *nobody])
        ),
        present=present,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """The records of one client, as a `Contributor` asks for them."""

    records: Dataset

    def __call__(self) -> Dataset:
        return self.records


def _records(setting: Setting, columns: NDArray[np.int64]) -> Dataset:
    """One record for each of `columns`, whose gradient, or the update by it, is too long."""
    features = np.zeros((len(columns), setting.agreement.layout.dimension // 2), dtype=np.float32)
    features[np.arange(len(columns)), columns] = _TOO_LONG * math.sqrt(2) * _bound(setting)
    return Dataset(features, np.zeros(len(columns), dtype=np.int64), Classification(("0", "1")))


def _bound(setting: Setting) -> float:
    """How long a gradient may be; for updates, the gradient that makes the longest in one step."""
    config = setting.config
    if not setting.agreement.mechanism.work.of_records:
        return config.privacy.clipping_norm / config.training.learning_rate
    assert config.privacy.max_grad_norm is not None
    return config.privacy.max_grad_norm
