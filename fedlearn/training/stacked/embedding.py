"""Embeddings: a record is a row of whole numbers, its output their vectors; by the table the gradient is their sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.training.stacked.kernel import AsTheyAre, PerRecord, Saved, Sums

__all__ = ["EmbeddingKernel"]


@dataclass(frozen=True, slots=True)
class EmbeddingKernel(AsTheyAre):
    """`torch.nn.Embedding` without padding index, renormalization and sparse gradients."""

    words: int
    parameter_count: int = 1

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        table = parameters[0]
        chosen = inputs.long().reshape(len(table), -1)
        rows = table.gather(1, chosen.unsqueeze(2).expand(-1, -1, table.shape[2]))
        return rows.view(*inputs.shape, -1), (chosen,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        return delta.new_zeros(delta.shape[:-1])  # whole numbers have none

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        (chosen,) = saved
        table = delta.new_zeros(len(delta), self.words, delta.shape[-1])
        flat = delta.reshape(len(delta), -1, delta.shape[-1])
        return [table.scatter_add(1, chosen.unsqueeze(2).expand_as(flat), flat)]

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        clients, records = delta.shape[:2]
        (chosen,) = saved
        one_by_one = delta.reshape(clients * records, 1, -1, delta.shape[-1])
        (tables,) = self.sums((chosen.view(clients * records, -1),), one_by_one)
        squares = tables.square().sum(dim=(1, 2)).view(clients, records)

        def weighted(factors: Tensor) -> Sums:
            rows = tables.view(clients, records, -1).to(factors.dtype)
            return [torch.bmm(factors.unsqueeze(1), rows).view(clients, self.words, -1)]

        return squares, weighted
