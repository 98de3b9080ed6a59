"""Pooling, along columns and then along rows: a maximum over a window is one over the maxima of its rows.

Of equal entries the first in reading order gets the gradient, as in PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.training.stacked.elementwise import ParameterFree
from fedlearn.training.stacked.kernel import Saved

__all__ = ["AveragePoolKernel", "MaxPoolKernel"]

_ROWS, _COLUMNS = 2, 3  # axes of (clients, records, rows, columns, channels)


@dataclass(frozen=True, slots=True)
class MaxPoolKernel(ParameterFree):
    """`torch.nn.MaxPool2d` without padding and dilation."""

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        best, of_columns = _largest(inputs, _COLUMNS, self.kernel[1], self.stride[1])
        output, of_rows = _largest(best, _ROWS, self.kernel[0], self.stride[0])
        return output, (inputs, best, *of_columns, *of_rows)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        inputs, best, *wins = saved
        split = self.kernel[1] - 1
        rows = _routed(delta, wins[split:], best.shape[_ROWS], _ROWS, self.stride[0])
        return _routed(rows, wins[:split], inputs.shape[_COLUMNS], _COLUMNS, self.stride[1])


@dataclass(frozen=True, slots=True)
class AveragePoolKernel(ParameterFree):
    """`torch.nn.AvgPool2d` without padding."""

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        columns = _total(inputs, _COLUMNS, self.kernel[1], self.stride[1])
        size = self.kernel[0] * self.kernel[1]
        return _total(columns, _ROWS, self.kernel[0], self.stride[0]) / size, (inputs, columns)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        inputs, columns = saved
        each = delta / (self.kernel[0] * self.kernel[1])
        rows = _spread(each, columns.shape[_ROWS], _ROWS, self.kernel[0], self.stride[0])
        return _spread(rows, inputs.shape[_COLUMNS], _COLUMNS, self.kernel[1], self.stride[1])


def _shifted(values: Tensor, axis: int, offset: int, count: int, stride: int) -> Tensor:
    """Every `stride`-th entry along `axis` from `offset` on, `count` of them."""
    index = [slice(None)] * values.dim()
    index[axis] = slice(offset, offset + (count - 1) * stride + 1, stride)
    return values[tuple(index)]


def _windows(values: Tensor, axis: int, kernel: int, stride: int) -> list[Tensor]:
    count = (values.shape[axis] - kernel) // stride + 1
    return [_shifted(values, axis, offset, count, stride) for offset in range(kernel)]


def _largest(values: Tensor, axis: int, kernel: int, stride: int) -> tuple[Tensor, list[Tensor]]:
    """The largest of each window; for each entry from the second on, 1 where it beats all before it, else 0.

    Ones and zeros are of the data's own type: a product of floats takes a tenth of the time of one with truth values.
    """
    best, *others = _windows(values, axis, kernel, stride)
    wins = []
    for other in others:
        wins.append((other > best).to(values.dtype))
        best = torch.maximum(best, other)
    return best, wins


def _routed(delta: Tensor, wins: Sequence[Tensor], size: int, axis: int, stride: int) -> Tensor:
    """The gradient of each window's maximum, given to the last entry that beat those before it."""
    gradient = _zeros_along(delta, axis, size)
    left = delta
    for offset in range(len(wins), 0, -1):
        part = left * wins[offset - 1]
        _shifted(gradient, axis, offset, delta.shape[axis], stride).add_(part)
        left = left - part
    _shifted(gradient, axis, 0, delta.shape[axis], stride).add_(left)
    return gradient


def _total(values: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    first, *others = _windows(values, axis, kernel, stride)
    for other in others:
        first = first + other
    return first


def _spread(delta: Tensor, size: int, axis: int, kernel: int, stride: int) -> Tensor:
    gradient = _zeros_along(delta, axis, size)
    for offset in range(kernel):
        _shifted(gradient, axis, offset, delta.shape[axis], stride).add_(delta)
    return gradient


def _zeros_along(like: Tensor, axis: int, size: int) -> Tensor:
    shape = list(like.shape)
    shape[axis] = size
    return like.new_zeros(shape)
