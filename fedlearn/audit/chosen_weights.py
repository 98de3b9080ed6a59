"""Weights that an attacker would send: at each of them one stored record has a gradient that lies mostly in one layer.

A record's gradient is computed here by autograd alone, so that what leaves a client can be held against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import trained_parameters, write_parameters
from fedlearn.privacy.clipping import Vector

__all__ = ["Gradient", "long_gradients", "random_weights", "record_gradients"]

_TRIED = 160
_MOST_TENSORS = 8
_LEAST, _MOST = 3.0, 300.0  # times the bound


@dataclass(frozen=True, slots=True)
class Gradient:
    """One record's gradient (d,) at `weights` (d,), not clipped; `starts` says where each parameter begins."""

    weights: Vector = field(repr=False)
    gradient: Vector = field(repr=False)
    starts: tuple[int, ...]

    @property
    def length(self) -> float:
        """Its L2 norm."""
        return float(np.linalg.norm(self.gradient))

    def parts(self) -> Vector:
        """The norm in each parameter, (parameters,)."""
        return np.sqrt(np.add.reduceat(self.gradient**2, self.starts))

    def clipped(self, bound: float) -> Vector:
        """The gradient with a norm of at most `bound`, (d,)."""
        return self.gradient * min(1.0, bound / max(self.length, 1e-300))

    def along(self, released: Vector) -> Vector:
        """How far `released` (d,) goes in the gradient's direction, parameter by parameter, (parameters,)."""
        parts = self.parts()
        inner = np.add.reduceat(self.gradient * released, self.starts)
        along: Vector = inner[parts > 0] / parts[parts > 0]
        return along


def random_weights(model: nn.Module, seed: int) -> Vector:
    """Weights (d,) whose layers have sizes that differ by powers of ten."""
    generator = np.random.default_rng([0xA0D17, seed])  # noqa: TID251 - an attacker's choice, nothing protects by it
    parts = []
    for parameter in trained_parameters(model):
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        size = 10 ** generator.uniform(-1.5, 1.0) / np.sqrt(fan)
        parts.append(generator.normal(0, size, parameter.numel()))
    return np.concatenate(parts)


def record_gradients(model: nn.Module, weights: Vector, records: Dataset) -> list[Gradient]:
    """The gradient of each record by itself at these weights."""
    write_parameters(model, weights)
    parameters = trained_parameters(model)
    sizes = [parameter.numel() for parameter in parameters]
    starts = tuple(int(start) for start in np.cumsum([0, *sizes[:-1]]))
    found = []
    for number in range(len(records)):
        inputs = torch.from_numpy(records.features[number : number + 1])
        loss = records.task.losses(model(inputs), torch.from_numpy(records.labels[number : number + 1])).sum()
        parts = torch.autograd.grad(loss, parameters)
        flat = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
        found.append(Gradient(weights, flat, starts))
    return found


def long_gradients(model: nn.Module, record: Dataset, *, bound: float) -> list[Gradient]:
    """For each of some parameters, the weights at which most of a gradient that is too long lies in it.

    Where no weights that were tried make the gradient of `record` three times as long as `bound`, the longest one.
    """
    tried = [record_gradients(model, random_weights(model, seed), record)[0] for seed in range(_TRIED)]
    tried = [one for one in tried if np.isfinite(one.length) and one.length < _MOST * bound]
    long = [one for one in tried if one.length >= _LEAST * bound] or sorted(tried, key=lambda one: one.length)[-1:]
    return [max(long, key=lambda one: float(one.parts()[part]) / one.length) for part in _some(len(long[0].starts))]


def _some(parameters: int) -> Sequence[int]:
    """All numbers of parameters, or as many as are looked at, evenly spaced."""
    spaced = np.linspace(0, parameters - 1, min(parameters, _MOST_TENSORS))
    return [int(part) for part in spaced]
