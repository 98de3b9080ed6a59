"""GroupNorm: x^ = (x - mean) / std over each group of a record, y = weight x^ + bias a channel.

By x the gradient is (g - mean(g) - x^ mean(g x^)) / std with g = weight dy, the means over the group; by weight and
bias of a record it is the sum of dy x^, and of dy, over the record's places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.training.stacked.kernel import AsTheyAre, PerRecord, Saved, Sums

__all__ = ["GroupNormKernel"]


@dataclass(frozen=True, slots=True)
class GroupNormKernel(AsTheyAre):
    """`torch.nn.GroupNorm` over (clients, records, rows, columns, channels) or (clients, records, channels)."""

    groups: int
    epsilon: float
    affine: bool

    @property
    def parameter_count(self) -> int:
        """Weight and bias, or nothing."""
        return 2 * self.affine

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        grouped = self._grouped(inputs)
        centered = grouped - grouped.mean(dim=(2, 4), keepdim=True)
        inverse = torch.rsqrt(centered.square().mean(dim=(2, 4), keepdim=True) + self.epsilon)
        normalized = (centered * inverse).view(inputs.shape)
        outputs = normalized
        if self.affine:
            outputs = torch.addcmul(
                _per_channel(parameters[1], inputs), normalized, _per_channel(parameters[0], inputs)
            )
        return outputs, (normalized, inverse)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        normalized, inverse = self._grouped(saved[0]), saved[1]
        scaled = self._grouped(delta * _per_channel(parameters[0], delta) if self.affine else delta)
        along = (scaled * normalized).mean(dim=(2, 4), keepdim=True)
        gradient = (scaled - scaled.mean(dim=(2, 4), keepdim=True) - normalized * along) * inverse
        return gradient.view(delta.shape)

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        return [rows.sum(dim=1) for rows in self._of_records(saved, delta)]

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        rows = self._of_records(saved, delta)
        squares = delta.new_zeros(delta.shape[:2])
        for part in rows:
            squares = squares + part.square().sum(dim=2)
        return squares, lambda factors: [
            torch.bmm(factors.unsqueeze(1), part.to(factors.dtype)).squeeze(1) for part in rows
        ]

    def _of_records(self, saved: Saved, delta: Tensor) -> Sums:
        """Each record's gradient by weight and by bias, (clients, records, channels)."""
        if not self.affine:
            return []
        places = tuple(range(2, delta.dim() - 1))
        both = [delta * saved[0], delta]
        return [part.sum(dim=places) for part in both] if places else both

    def _grouped(self, values: Tensor) -> Tensor:
        """(clients, records, places, groups, channels of a group)."""
        clients, records, channels = values.shape[0], values.shape[1], values.shape[-1]
        return values.reshape(clients, records, -1, self.groups, channels // self.groups)


def _per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """(clients, channels) with axes of one for records and places."""
    return parameter.view(len(parameter), *[1] * (like.dim() - 2), parameter.shape[1])
