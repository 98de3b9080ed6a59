"""What a layer must say of itself to be stacked."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Kernel", "PerRecord", "Saved", "Sums"]

Saved = tuple[Tensor, ...]  # what forward keeps for backward
Sums = list[Tensor]  # one a parameter, (clients, *shape)
# Squared norm of each record's gradient over the layer's parameters, (clients, records), and the sum of the records'
# gradients times a factor each, (clients, records).
PerRecord = tuple[Tensor, Callable[[Tensor], Sums]]


class Kernel(Protocol):
    """A layer of many clients at once: `parameters` are (clients, *shape) each, data (clients, records, …)."""

    @property
    def parameter_count(self) -> int:
        """How many of the model's parameters are the layer's."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        """The layer's output, and what its gradients need."""

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        """The gradient by the inputs, where `delta` is that by the outputs."""

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        """The gradient by each parameter, summed over a client's records."""

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        """The same record by record, as far as clipping needs it."""
