"""Local work of many clients at once, block by block: the same batches, coins and clipping as in `training.local`.

A block is some sixty records a step on a CPU, which stay in the second-level cache, or as many as fit a GPU well.
Clients of a block may hold different numbers of records: short batches are filled up with records of weight 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.layout import Layout
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import truncate
from fedlearn.privacy.sampling import poisson_sample
from fedlearn.training.device import one_thread
from fedlearn.training.local import StepNoise, batches, step_units
from fedlearn.training.stacked.model import StackedModel

__all__ = ["StackedTrainer", "block_size", "even_parts"]

_BLOCK_RECORDS = {"cpu": 64}  # a step of a block; elsewhere `_MANY_RECORDS`
_MANY_RECORDS = 1 << 14
_BLOCK_ENTRIES = 1 << 22  # weights of a block, all clients together
_CHUNK = 64  # records summed in float32 at most (docs/specification/privacy.md 3.1)

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StackedTrainer:
    """The stacked counterpart of `training.local` for one model; results are blocks of rows, (clients, d) float64.

    Guarantees: the rows of a client do not depend on who else is in its block.
    """

    model: StackedModel
    layout: Layout
    device: str
    dtype: torch.dtype = field(default=torch.float32)

    def updates(
        self,
        weights: Vector,
        clients: Sequence[tuple[Dataset, Sequence[int]]],
        *,
        local_steps: int,
        batch_size: int,
        learning_rate: float,
    ) -> Vector:
        """`train_update` of each client, (clients, d): plain SGD; `clients` are records and the seed of their order."""
        records = _Records(self, [held for held, _ in clients])
        plans = [_plan(len(held), batch_size, local_steps, seed) for held, seed in clients]
        with one_thread(), torch.inference_mode():
            places, present = records.places(plans)
            weight = present / present.sum(dim=1, keepdim=True).clamp(min=1)
            start = self.packed(torch.from_numpy(np.ascontiguousarray(weights)).to(self.device, self.dtype))
            local = start.repeat(len(clients), 1)
            for step in places:
                inputs, targets = records.at(step)
                local.sub_(self.model.gradient(local, inputs, targets, weight), alpha=learning_rate)
            return (self.unpacked(local).double() - self.unpacked(start).double()).cpu().numpy()

    def record_sums(
        self,
        weights: Vector,
        clients: Sequence[Dataset],
        *,
        sampling_probability: Fraction,
        max_grad_norm: float,
        entropy: Entropy,
    ) -> Vector:
        """`record_sum` of each client, (clients, d): clipped gradients of the records that its own coins choose."""
        with one_thread(), torch.inference_mode():
            chosen = [poisson_sample(len(held), sampling_probability, entropy) for held in clients]
            start = self.packed(torch.from_numpy(weights.astype(np.float64))).numpy()
            records, sums = _Records(self, clients), np.empty((len(clients), start.shape[1]))
            for members in self._of_like_size(chosen):
                rows = np.tile(start, (len(members), 1))
                sums[members] = self._clipped_sums(rows, records, members, chosen, max_grad_norm)
            return self.unpacked(torch.from_numpy(sums)).numpy()

    def private_updates(
        self,
        weights: Vector,
        clients: Sequence[Dataset],
        *,
        local_steps: int,
        learning_rate: float,
        max_grad_norm: float,
        sampling_probability: Fraction,
        planned_batch: Fraction,
        step_noise_std: int,
        step_noise: StepNoise,
        entropy: Entropy,
    ) -> Vector:
        """`train_privately` of each client, (clients, d): DP-SGD with the full noise in each step."""
        grid, step = step_units(learning_rate=learning_rate, max_grad_norm=max_grad_norm, planned_batch=planned_batch)
        records = _Records(self, clients)
        with one_thread(), torch.inference_mode():
            start = self.packed(torch.from_numpy(weights.astype(np.float64))).numpy()
            local = np.tile(start, (len(clients), 1))
            for _ in range(local_steps):
                chosen = [poisson_sample(len(held), sampling_probability, entropy) for held in clients]
                for members in self._of_like_size(chosen):
                    rows = local[members]
                    moves = truncate(
                        self._clipped_sums(rows, records, members, chosen, max_grad_norm), grid, overwrite=True
                    )
                    for row in moves:
                        row += step_noise(step_noise_std, len(row), entropy)
                    local[members] = rows - step * moves
            return self.unpacked(torch.from_numpy(local - start)).numpy()

    def _of_like_size(self, chosen: Sequence[Indices]) -> Iterator[list[int]]:
        """All members by the size of what was `chosen`, the largest first, so many together as make up a block."""
        left = sorted(range(len(chosen)), key=lambda member: -len(chosen[member]))
        while left:
            count = block_size(1, len(chosen[left[0]]), self.device)
            yield left[:count]
            left = left[count:]

    def _clipped_sums(
        self,
        rows: Vector,
        records: "_Records",
        members: Sequence[int],
        chosen: Sequence[Indices],
        max_grad_norm: float,
    ) -> Vector:
        """Sums of the clipped gradients of `members`, whose weights are `rows`, over the records `chosen` by each.

        The result is (members, d) float64: float32 inside a chunk of 64 records, float64 across.
        """
        local = torch.from_numpy(rows).to(self.device, self.dtype)
        total = torch.zeros(rows.shape, dtype=torch.float64)
        for first in range(0, max(len(chosen[member]) for member in members), _CHUNK):
            taken = [chosen[member][first : first + _CHUNK] for member in members]
            inputs, targets, present = records.batch(taken, members)
            sums = self.model.clipped_sum(local, inputs, targets, present, max_grad_norm)
            total += sums.to("cpu", torch.float64)
        return total.numpy()

    def packed(self, weights: Tensor) -> Tensor:
        """Weights (d,) in the order that the layers compute with, (1, d)."""
        parts = torch.split(weights[None], list(self.layout.sizes), dim=1)
        return self.model.pack([part.view(1, *shape) for part, shape in zip(parts, self.layout.shapes, strict=True)])

    def unpacked(self, rows: Tensor) -> Tensor:
        """Rows (n, d) back in the order of the vector."""
        return torch.cat([part.flatten(1) for part in self.model.unpack(rows)], dim=1)


class _Records:
    """The records of a block's clients behind each other, and one of zeros to fill batches up with."""

    def __init__(self, trainer: StackedTrainer, clients: Sequence[Dataset]) -> None:
        sizes = [len(held) for held in clients]
        self._starts = np.cumsum([0, *sizes[:-1]])
        shape = clients[0].features.shape[1:]
        features = np.empty((sum(sizes) + 1, *shape), dtype=clients[0].features.dtype)
        features[-1] = 0
        labels = clients[0].task.blank_targets(sum(sizes) + 1)
        for start, held in zip(self._starts, clients, strict=True):
            features[start : start + len(held)], labels[start : start + len(held)] = held.features, held.labels
        self._inputs = torch.from_numpy(features).to(trainer.device, trainer.dtype)
        self._targets = torch.from_numpy(labels).to(trainer.device)
        self._dtype = trainer.dtype

    def batch(self, chosen: Sequence[Indices], members: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and weights of one or nothing, (clients, records, …): what each of `members` has `chosen`."""
        sizes = np.array([len(taken) for taken in chosen])
        present = np.arange(max(1, sizes.max())) < sizes[:, np.newaxis]
        places = np.full(present.shape, len(self._targets) - 1, dtype=np.int64)
        places[present] = np.concatenate(chosen) + np.repeat(self._starts[list(members)], sizes)
        return *self.at(self._index(places)), self._ones(present)

    def places(self, plans: Sequence[Indices]) -> tuple[Tensor, Tensor]:
        """Where the batches of all steps lie, (steps, clients, records), and ones or nothings, (clients, records).

        `plans` are each client's batches, (steps, records of a batch).
        """
        sizes = np.array([plan.shape[1] for plan in plans])
        present = np.arange(max(1, sizes.max())) < sizes[:, np.newaxis]
        places = np.full((len(plans[0]), *present.shape), len(self._targets) - 1, dtype=np.int64)
        for row, (start, plan) in enumerate(zip(self._starts, plans, strict=True)):
            places[:, row, : plan.shape[1]] = start + plan
        return self._index(places), self._ones(present)

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (clients, records, …), of what lies at `places`, (clients, records)."""
        index = places.view(-1)
        inputs, targets = self._inputs.index_select(0, index), self._targets.index_select(0, index)
        return inputs.view(*places.shape, *inputs.shape[1:]), targets.view(places.shape)

    def _index(self, places: Indices) -> Tensor:
        return torch.from_numpy(places).to(self._inputs.device)

    def _ones(self, present: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(present).to(self._inputs.device, self._dtype)


def block_size(dimension: int, records_a_step: int, device: str) -> int:
    """How many clients of a model with `dimension` parameters are trained together."""
    most = _BLOCK_RECORDS.get(device, _MANY_RECORDS) // max(1, records_a_step)
    return max(1, min(most, _BLOCK_ENTRIES // max(1, dimension)))


def even_parts(count: int, size: int, *, most: int | None = None) -> Iterator[slice]:
    """`count` clients in parts of at most `size`, or in `most` parts if that is fewer.

    As even as can be: a last part of one client would be slow.
    """
    parts = -(-count // size)
    if most is not None:
        parts = min(most, parts)
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def _plan(records: int, batch_size: int, local_steps: int, seed: Sequence[int]) -> Indices:
    """The batches of `train_update`, (steps, records of a batch); of nobody's records, empty ones."""
    if records == 0:
        return np.empty((local_steps, 0), dtype=np.int64)
    return np.stack(list(batches(records, batch_size, local_steps, seed)))
