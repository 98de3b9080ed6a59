"""Linear layers, y = W x + b on the last axis.

A record's gradient by (W, b) is (delta x^T, delta), of squared norm |delta|^2 (|x|^2 + 1): nothing is formed for it.
The squares are float64: where one of float32 vanishes, the other factor can make the gradient long all the same. What
is too long for the data's own type is infinite: a factor that made it short again would have lost its last bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.training.stacked.kernel import AsTheyAre, PerRecord, Saved, Sums

__all__ = ["LinearKernel"]


@dataclass(frozen=True, slots=True)
class LinearKernel(AsTheyAre):
    """`torch.nn.Linear` over records that are one vector each."""

    bias: bool

    @property
    def parameter_count(self) -> int:
        """Weight, and bias where there is one."""
        return 1 + self.bias

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        weight = parameters[0].transpose(1, 2)
        if self.bias:
            return torch.baddbmm(parameters[1].unsqueeze(1), inputs, weight), (inputs,)
        return torch.bmm(inputs, weight), (inputs,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        return torch.bmm(delta, parameters[0])

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        weight = torch.bmm(delta.transpose(1, 2), saved[0])
        return [weight, delta.sum(dim=1)] if self.bias else [weight]

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        lengths = _representable(saved[0].double().square().sum(dim=2) + float(self.bias), saved[0].dtype)
        squares = _representable(delta.double().square().sum(dim=2) * lengths, delta.dtype)
        return squares, lambda factors: self.sums((saved[0].to(factors.dtype),), delta * factors.unsqueeze(2))


def _representable(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """`squares`, infinite where `dtype` has no number as large."""
    return squares.masked_fill(squares > torch.finfo(dtype).max, float("inf"))
