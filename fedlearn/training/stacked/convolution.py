"""Convolutions as one product of patches: y = patches W + b, with patches (clients, records x places, entries of one).

Where the kernel is a whole number of strides, the stride is taken out first: entries within one step of it become
channels of one cell, and the kernel moves cell by cell, which makes the runs of memory to be copied longer. By the
weight the gradient is patches^T delta; by the input, delta W^T added back to where each patch was taken from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedlearn.training.stacked.kernel import PerRecord, Saved, Sums, added_at

__all__ = ["ConvolutionKernel"]


@dataclass(frozen=True, slots=True)
class ConvolutionKernel:
    """`torch.nn.Conv2d` without dilation and groups, padded with zeros; sizes are (rows, columns)."""

    channels: int  # of the input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    bias: bool

    @property
    def parameter_count(self) -> int:
        """Weight, and bias where there is one."""
        return 1 + self.bias

    @property
    def _cell(self) -> tuple[int, int]:
        """Rows and columns of the input that make up one cell."""
        whole = self.kernel[0] % self.stride[0] == 0 and self.kernel[1] % self.stride[1] == 0
        return self.stride if whole else (1, 1)

    @property
    def _extent(self) -> tuple[int, int]:
        """Rows and columns of the kernel, in cells."""
        return self.kernel[0] // self._cell[0], self.kernel[1] // self._cell[1]

    @property
    def _step(self) -> tuple[int, int]:
        """How far the kernel moves, in cells."""
        return self.stride[0] // self._cell[0], self.stride[1] // self._cell[1]

    def pack(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The weight (clients, out, channels, kh, kw) as (clients, out, entries of a patch), in a patch's order."""
        weight, *rest = parameters
        clients, out = weight.shape[:2]
        (rows, columns), (high, wide) = self._extent, self._cell
        split = weight.reshape(clients, out, self.channels, rows, high, columns, wide)
        return [split.permute(0, 1, 3, 5, 4, 6, 2).reshape(clients, out, -1), *rest]

    def unpack(self, packed: Sequence[Tensor]) -> list[Tensor]:
        """The weight as (clients, out, channels, kh, kw) again."""
        patches, *rest = packed
        clients, out = patches.shape[:2]
        (rows, columns), (high, wide) = self._extent, self._cell
        split = patches.reshape(clients, out, rows, columns, high, wide, self.channels)
        return [split.permute(0, 1, 6, 2, 4, 3, 5).reshape(clients, out, self.channels, *self.kernel), *rest]

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        clients, records = inputs.shape[:2]
        height, width = self._places(inputs.shape[2:4])
        (rows, columns), (down, across) = self._extent, self._step
        cells = self._as_cells(inputs)
        depth = cells.shape[-1]
        lines = cells.flatten(3)
        # A row of a patch is one run of memory; row by row of the kernel they are copied twice as fast as at once.
        taken = [
            lines[:, :, row : row + (height - 1) * down + 1 : down].unfold(3, columns * depth, across * depth)
            for row in range(rows)
        ]
        patches = torch.stack([run[:, :, :, :width] for run in taken], dim=4).view(
            clients, records * height * width, -1
        )
        weight = parameters[0].transpose(1, 2)
        flat = torch.baddbmm(parameters[1].unsqueeze(1), patches, weight) if self.bias else patches.bmm(weight)
        return flat.view(clients, records, height, width, -1), (patches, torch.empty(inputs.shape, device="meta"))

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        clients, records, height, width, out = delta.shape
        (rows, columns), (down, across) = self._extent, self._step
        spread = torch.bmm(delta.reshape(clients, -1, out), parameters[0])
        spread = spread.view(clients, records, height, width, rows, columns, -1)
        high, wide = self._cells(saved[1].shape[2:4])
        parts = [
            (
                (
                    slice(None),
                    slice(None),
                    slice(row, row + (height - 1) * down + 1, down),
                    slice(column, column + (width - 1) * across + 1, across),
                ),
                spread[:, :, :, :, row, column],
            )
            for row in range(rows)
            for column in range(columns)
        ]
        cells = added_at(parts, delta.new_zeros(clients, records, high, wide, spread.shape[-1]))
        return self._as_image(cells, saved[1].shape[2:4])

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        clients, out = delta.shape[0], delta.shape[-1]
        flat = delta.reshape(clients, -1, out)
        weight = torch.bmm(flat.transpose(1, 2), saved[0])
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
            weight = torch.bmm(row, weights.to(row.dtype)).view(clients, out, -1)
            return [weight, torch.bmm(row, biases.to(row.dtype)).squeeze(1)] if self.bias else [weight]

        return squares, weighted

    def _places(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the output."""
        high, wide = (
            (entries + 2 * padding - kernel) // stride + 1
            for entries, padding, kernel, stride in zip(size, self.padding, self.kernel, self.stride, strict=True)
        )
        return high, wide

    def _cells(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the padded input, in cells; begun ones count."""
        high, wide = (
            -(-(entries + 2 * padding) // cell)
            for entries, padding, cell in zip(size, self.padding, self._cell, strict=True)
        )
        return high, wide

    def _as_cells(self, inputs: Tensor) -> Tensor:
        """(clients, records, rows, columns, channels) -> (clients, records, *cells, entries of a cell), padded."""
        (above, left), (high, wide), size = self.padding, self._cell, inputs.shape[2:4]
        rows, columns = self._cells(size)
        below, right = rows * high - above - size[0], columns * wide - left - size[1]
        if (above, left, below, right) != (0, 0, 0, 0):
            inputs = functional.pad(inputs, (0, 0, left, right, above, below))
        if self._cell == (1, 1):
            return inputs.contiguous()
        parts = [inputs[:, :, row::high, column::wide] for row in range(high) for column in range(wide)]
        return torch.stack(parts, dim=4).flatten(4)

    def _as_image(self, cells: Tensor, size: Sequence[int]) -> Tensor:
        """The way back: without what was padded."""
        (above, left), (high, wide) = self.padding, self._cell
        clients, records, rows, columns = cells.shape[:4]
        image = cells
        if self._cell != (1, 1):
            split = cells.view(clients, records, rows, columns, high, wide, -1).permute(0, 1, 2, 4, 3, 5, 6)
            image = split.reshape(clients, records, rows * high, columns * wide, -1)
        return image[:, :, above : above + size[0], left : left + size[1]]
