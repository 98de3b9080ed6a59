"""What a layer must say of itself to be stacked."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["AsTheyAre", "Kernel", "PerRecord", "Saved", "Sums", "added_at"]

Saved = tuple[Tensor, ...]  # what forward keeps for backward
Sums = list[Tensor]  # one a parameter, packed
# Squared norm of each record's gradient over the layer's parameters, (clients, records), and the sum of the records'
# gradients times a factor each, (clients, records), in the factors' dtype. What is summed is the very row whose norm
# was taken: in another order of additions a row whose entries cancel would be another one.
PerRecord = tuple[Tensor, Callable[[Tensor], Sums]]


class Kernel(Protocol):
    """A layer of many clients at once: `parameters` are packed, a client each along the first axis, data (clients,
    records, …).
    """

    @property
    def parameter_count(self) -> int:
        """How many of the model's parameters are the layer's."""

    def pack(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Parameters (clients, *shape), with each client's entries in the order that the layer computes with."""

    def unpack(self, packed: Sequence[Tensor]) -> list[Tensor]:
        """The same back in PyTorch's order."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        """The layer's output, and what its gradients need."""

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        """The gradient by the inputs, where `delta` is that by the outputs."""

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        """The gradient by each parameter, summed over a client's records."""

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        """The same record by record, as far as clipping needs it."""


class AsTheyAre:
    """For a layer that computes with its parameters in PyTorch's own order."""

    def pack(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return list(parameters)

    def unpack(self, packed: Sequence[Tensor]) -> list[Tensor]:
        return list(packed)


def added_at(places: Iterable[tuple[tuple[slice, ...], Tensor]], zeros: Tensor) -> Tensor:
    """`zeros`, which may be written over, with each part added at its place."""
    if not torch.compiler.is_compiling():
        for place, part in places:
            zeros[place] += part
        return zeros

    def alone(place: tuple[slice, ...], part: Tensor) -> Tensor:
        whole = torch.zeros_like(zeros)
        whole[place] = part
        return whole

    # Additions in place become conditions inside each other, ten times as slow.
    return functools.reduce(operator.add, [alone(place, part) for place, part in places])
