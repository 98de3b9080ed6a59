"""Pooling, along columns and then along rows: a maximum over a window is one over the maxima of its rows.

Of equal entries the first in reading order gets the gradient, as in PyTorch.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fedlearn.training.stacked.elementwise import ParameterFree
from fedlearn.training.stacked.kernel import Saved, added_at

__all__ = ["AveragePoolKernel", "MaxPoolKernel"]

_ROWS, _COLUMNS = 2, 3  # axes of (clients, records, rows, columns, channels)


@dataclass(frozen=True, slots=True)
class MaxPoolKernel(ParameterFree):
    """`torch.nn.MaxPool2d` without padding and dilation."""

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        of_columns = _largest(inputs, _COLUMNS, self.kernel[1], self.stride[1])
        return _largest(of_columns, _ROWS, self.kernel[0], self.stride[0]), (inputs, of_columns)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        inputs, of_columns = saved
        rows = _routed(delta, of_columns, _ROWS, self.kernel[0], self.stride[0])
        return _routed(rows, inputs, _COLUMNS, self.kernel[1], self.stride[1])


@dataclass(frozen=True, slots=True)
class AveragePoolKernel(ParameterFree):
    """`torch.nn.AvgPool2d` without padding."""

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        columns = _total(_windows(inputs, _COLUMNS, self.kernel[1], self.stride[1]))
        total = _total(_windows(columns, _ROWS, self.kernel[0], self.stride[0]))
        return total / (self.kernel[0] * self.kernel[1]), (inputs, columns)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        inputs, columns = saved
        each = delta / (self.kernel[0] * self.kernel[1])
        rows = _put_back([each] * self.kernel[0], columns.shape[_ROWS], _ROWS, self.stride[0])
        return _put_back([rows] * self.kernel[1], inputs.shape[_COLUMNS], _COLUMNS, self.stride[1])


def _places(axis: int, kernel: int, stride: int, size: int) -> list[tuple[slice, ...]]:
    """For each offset in a window, where it lies in all windows along `axis`, of `size` entries."""
    windows = (size - kernel) // stride + 1
    before = (slice(None),) * axis
    return [(*before, slice(offset, offset + (windows - 1) * stride + 1, stride)) for offset in range(kernel)]


def _windows(values: Tensor, axis: int, kernel: int, stride: int) -> list[Tensor]:
    return [values[place] for place in _places(axis, kernel, stride, values.shape[axis])]


def _largest(values: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """The largest of each window."""
    return functools.reduce(torch.maximum, _windows(values, axis, kernel, stride))


def _routed(delta: Tensor, values: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """The gradient of each window's maximum, given to the last of `values` that beat those before it."""
    first, *others = _windows(values, axis, kernel, stride)
    before = accumulate(others[:-1], torch.maximum, initial=first)
    wins = [_beats(other, best) for other, best in zip(others, before, strict=True)]
    parts, left = [], delta
    for win in reversed(wins):
        parts.append(left * win)
        left = left - parts[-1]
    return _put_back([left, *reversed(parts)], values.shape[axis], axis, stride)


def _beats(other: Tensor, best: Tensor) -> Tensor:
    """1 where `other` > `best`, else 0, of their own type: truth values cost eight times as much."""
    return torch.gt(other, best, out=torch.empty(other.shape, dtype=other.dtype, device=other.device))


def _total(parts: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _put_back(parts: Sequence[Tensor], size: int, axis: int, stride: int) -> Tensor:
    """For each offset in a window a part, (…, windows, …), added to where it lies; `size` entries along `axis`."""
    shape = list(parts[0].shape)
    shape[axis] = size
    return added_at(zip(_places(axis, len(parts), stride, size), parts, strict=True), parts[0].new_zeros(shape))
