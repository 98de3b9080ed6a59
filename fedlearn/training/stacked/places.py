"""Sums of clipped gradients in which a record adds the same bits, whoever else is there.

Kernels treat the rows of a product by their place: which of them share an instruction, where a loop ends. So the last
bits of a record's gradient hang on its place in a chunk and on the chunk's size, and whoever chooses the weights can
have the gradient's direction hang on these bits. Here both are functions of the record alone: chunks have one size, a
record's place is a hash of its content, and a place that is left over holds zeros. What is summed over records is
float64, where adding a record changes the others' part by less than 2^-40 of the bound.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.task import Targets, Task
from fedlearn.training.device import one_thread
from fedlearn.training.stacked.check import checked_trainer, made_up
from fedlearn.training.stacked.trainer import StackedTrainer

__all__ = ["PlacedSums", "checked_places", "places_of"]

_log = logging.getLogger(__name__)

_PLACES: Final = 64  # of a chunk; a byte of the hash says which
_MOST_CHUNKS: Final = 8  # computed together, as if they were clients with the same weights
_ENTRIES: Final = 1 << 22  # of gradients that are formed together at most, in float32


@dataclass(frozen=True, slots=True)
class PlacedSums:
    """The clipped sums of one client, by kernels, at places that are functions of the records.

    Guarantees:
        a record that is added, left out or changed changes no bit of what another one adds.
    """

    trainer: StackedTrainer
    chunks: int  # computed together

    def clipped_sum(self, weights: Vector, records: Dataset, max_grad_norm: float) -> Vector:
        """The sum of the records' gradients, each clipped to L2 norm `max_grad_norm`, (d,) float64.

        `weights` is (d,). A record whose gradient is not finite counts as zeros.
        """
        with one_thread(), torch.inference_mode():
            start = self.trainer.packed(torch.from_numpy(weights.astype(np.float64))).to(
                self.trainer.device, self.trainer.dtype
            )
            rows = start.repeat(self.chunks, 1)
            total = torch.zeros(start.shape[1], dtype=torch.float64)
            for inputs, targets, present in self._filled(records):
                sums = self.trainer.model.clipped_sum(rows, inputs, targets, present, max_grad_norm)
                for part in sums.to("cpu", torch.float64):
                    total += part
            return self.trainer.unpacked(total[None])[0].numpy()

    def _filled(self, records: Dataset) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs, targets and ones or nothings, (chunks, places, …), until every record was at its place once."""
        place = places_of(records)
        chunk = _ranks(place)
        shape = (self.chunks, _PLACES)
        for first in range(0, int(chunk.max(initial=-1)) + 1, self.chunks):
            taken = np.flatnonzero((chunk >= first) & (chunk < first + self.chunks))
            at = (torch.from_numpy(chunk[taken] - first), torch.from_numpy(place[taken]))
            inputs = torch.zeros(*shape, *records.input_shape, dtype=self.trainer.dtype)
            blank = torch.from_numpy(records.task.blank_targets(math.prod(shape)))
            targets, present = blank.view(*shape, *blank.shape[1:]), torch.zeros(shape, dtype=self.trainer.dtype)
            inputs[at] = torch.from_numpy(records.features[taken]).to(self.trainer.dtype)
            targets[at] = torch.from_numpy(records.labels[taken])
            present[at] = 1
            device = self.trainer.device
            yield inputs.to(device), targets.to(device), present.to(device)


def places_of(records: Dataset) -> NDArray[np.int64]:
    """Each record's place in a chunk, (n,) from 0 to 63: a hash of its features and its label, and of nothing else."""
    features, labels = np.ascontiguousarray(records.features, dtype="<f4"), np.ascontiguousarray(records.labels)
    hashes = (
        hashlib.blake2b(row.data, digest_size=1, salt=label.tobytes()).digest()[0]
        for row, label in zip(features, labels, strict=True)
    )
    return np.fromiter(hashes, dtype=np.int64, count=len(labels)) % _PLACES


def _ranks(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier records have the same place, (n,)."""
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=_PLACES)
    ranks = np.empty_like(places)
    ranks[order] = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def checked_places(model: nn.Module, *, input_shape: tuple[int, ...], task: Task, device: str) -> PlacedSums | None:
    """`PlacedSums` for `model`, tried on this machine for these very shapes; None where its kernels do not hold.

    The trial uses weights at which logits are equal but for their last bits, so that a bit that differs shows.
    """
    trainer = checked_trainer(model, input_shape=input_shape, task=task, private=True, device=device)
    if trainer is None:
        return None
    trainer = replace(trainer, model=replace(trainer.model, wide=True))
    dimension = trainer.layout.dimension
    for chunks in sorted({1, max(1, min(_MOST_CHUNKS, _ENTRIES // (_PLACES * dimension)))}, reverse=True):
        found = PlacedSums(trainer, chunks)
        try:
            if _holds(found, read_parameters(model), input_shape, task):
                return found
        except Exception:  # a device without float64, or with too little memory
            _log.exception("the model's kernels fail on this device")
    _log.warning("this machine's kernels treat records by their place; each record is computed by itself")
    return None


def _holds(sums: PlacedSums, start: Vector, input_shape: tuple[int, ...], task: Task) -> bool:
    """Whether no record's part changes by a bit with what lies at other places, or with its chunk."""
    trainer, shape = sums.trainer, (sums.chunks, _PLACES)
    with one_thread(), torch.inference_mode():
        inputs, others, zeros = (
            made_up(number, (*shape, *input_shape)).to(trainer.device, trainer.dtype) for number in (1, 2, 0)
        )
        targets = torch.from_numpy(_in_no_order(task.made_up_targets(sums.chunks * _PLACES))).to(trainer.device)
        targets = targets.view(*shape, *targets.shape[1:])
        place = torch.arange(_PLACES, device=trainer.device)
        # What a function may take another way for: saturated, so small that the type has few bits left, or no number.
        kinds = torch.tensor([1e6, 1e-41, math.inf, math.nan], device=trainer.device, dtype=trainer.dtype)
        strange = kinds.repeat(_PLACES // len(kinds)).roll(1).view(-1, *[1] * len(input_shape))
        for weights in _on_ties(start, trainer.layout.shapes):
            row = trainer.packed(torch.from_numpy(weights)).to(trainer.device, trainer.dtype)
            rows = row.repeat(sums.chunks, 1)
            for bit in range(6):
                kept = ((place >> bit) & 1).bool()
                present = kept.to(trainer.dtype).repeat(sums.chunks, 1)
                expected = trainer.model.clipped_sum(rows, inputs, targets, present, 1.0)
                for filler in (others, zeros, others * strange):
                    mixed = torch.where(kept.view(1, -1, *[1] * len(input_shape)), inputs, filler)
                    x, y, p = (part.roll(1, dims=0) for part in (mixed, targets, present))
                    found = trainer.model.clipped_sum(rows, x, y, p, 1.0).roll(-1, dims=0)
                    if not torch.equal(found, expected):
                        return False
    return True


def _on_ties(start: Vector, shapes: Sequence[tuple[int, ...]]) -> Iterator[Vector]:
    """The start weights, and weights that turn last bits into directions: equal rows, long sums, large numbers."""
    waves = np.sin(np.arange(1, len(start) + 1) * 12.9898) * 43758.5453
    noise = (waves - np.floor(waves)) - 0.5
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    last = max(index for index, shape in enumerate(shapes) if len(shape) > 1 or len(shapes) == 1)
    tail = slice(int(ends[last] - np.prod(shapes[last])), int(ends[last]))
    yield start + 0.01 * noise
    equal = noise.copy()
    rows = noise[tail].reshape(shapes[last][0], -1)
    equal[tail] = np.float32(1e9) * np.repeat(rows[:1], len(rows), axis=0).ravel()
    yield equal
    large = noise.copy()
    large[tail] = 1e6 + noise[tail]
    yield large


def _in_no_order(targets: Targets) -> Targets:
    """Every seventh of them after another, so that no power of two falls on one kind."""
    return targets[np.arange(len(targets)) * 7 % len(targets)]
