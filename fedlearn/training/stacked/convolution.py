"""Convolutions as one product of patches: y = patches W + b, with patches (clients, records x places, kh kw channels).

By the weight the gradient is patches^T delta; by the input, delta W^T added back to where each patch was taken from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedlearn.training.stacked.kernel import PerRecord, Saved, Sums

__all__ = ["ConvolutionKernel"]


@dataclass(frozen=True, slots=True)
class ConvolutionKernel:
    """`torch.nn.Conv2d` without dilation and groups, padded with zeros; sizes are (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    bias: bool

    @property
    def parameter_count(self) -> int:
        """Weight, and bias where there is one."""
        return 1 + self.bias

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        clients, records = inputs.shape[:2]
        rows, columns = self.padding
        if rows or columns:
            inputs = functional.pad(inputs, (0, 0, columns, columns, rows, rows))
        windows = inputs.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        height, width = windows.shape[2:4]
        # (clients, records, height, width, kh, kw, channels): a row of a patch is one run of memory
        patches = windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(clients, records * height * width, -1)
        weight = _as_columns(parameters[0])
        flat = torch.baddbmm(parameters[1].unsqueeze(1), patches, weight) if self.bias else patches.bmm(weight)
        shape = torch.Size((records, *inputs.shape[2:]))
        return flat.view(clients, records, height, width, -1), (patches, torch.empty(shape, device="meta"))

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        clients, records, height, width, out = delta.shape
        spread = torch.bmm(delta.reshape(clients, -1, out), _as_columns(parameters[0]).transpose(1, 2))
        spread = spread.view(clients, records, height, width, *self.kernel, -1)
        gradient = delta.new_zeros(clients, *saved[1].shape)
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                gradient[
                    :,
                    :,
                    row : row + height * self.stride[0] : self.stride[0],
                    column : column + width * self.stride[1] : self.stride[1],
                ] += spread[:, :, :, :, row, column]
        (rows, columns), (full_height, full_width) = self.padding, gradient.shape[2:4]
        return gradient[:, :, rows : full_height - rows, columns : full_width - columns]

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        clients, out = delta.shape[0], delta.shape[-1]
        flat = delta.reshape(clients, -1, out)
        weight = self._as_weight(torch.bmm(flat.transpose(1, 2), saved[0]))
        return [weight, flat.sum(dim=1)] if self.bias else [weight]

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        clients, records, out = delta.shape[0], delta.shape[1], delta.shape[-1]
        flat = delta.reshape(clients * records, -1, out)
        weights = torch.bmm(flat.transpose(1, 2), saved[0].view(clients * records, flat.shape[1], -1))
        weights = weights.view(clients, records, -1)
        biases = flat.sum(dim=1).view(clients, records, out)
        squares = weights.square().sum(dim=2)
        if self.bias:
            squares = squares + biases.square().sum(dim=2)

        def weighted(factors: Tensor) -> Sums:
            row = factors.unsqueeze(1)
            weight = self._as_weight(torch.bmm(row, weights).view(clients, out, -1))
            return [weight, torch.bmm(row, biases).squeeze(1)] if self.bias else [weight]

        return squares, weighted

    def _as_weight(self, rows: Tensor) -> Tensor:
        """(clients, out, kh kw channels) -> (clients, out, channels, kh, kw)."""
        return rows.view(*rows.shape[:2], *self.kernel, -1).permute(0, 1, 4, 2, 3)


def _as_columns(weight: Tensor) -> Tensor:
    """(clients, out, channels, kh, kw) -> (clients, kh kw channels, out), a view of a copy."""
    clients, out = weight.shape[:2]
    return weight.permute(0, 1, 3, 4, 2).reshape(clients, out, -1).transpose(1, 2)
