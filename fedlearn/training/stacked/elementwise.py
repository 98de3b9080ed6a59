"""Layers without parameters that act entry by entry, or only change a shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.training.stacked.kernel import AsTheyAre, PerRecord, Saved, Sums

__all__ = ["FlattenKernel", "ParameterFree", "ReluKernel", "SigmoidKernel", "TanhKernel"]


class ParameterFree(AsTheyAre):
    """What a layer without parameters says of them."""

    parameter_count = 0

    def sums(self, saved: Saved, delta: Tensor) -> Sums:
        return []

    def per_record(self, saved: Saved, delta: Tensor) -> PerRecord:
        return delta.new_zeros(delta.shape[:2]), lambda _: []


class TanhKernel(ParameterFree):
    """y = tanh x, dy/dx = 1 - y^2."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        outputs = inputs.tanh()
        return outputs, (outputs,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.tanh_backward(delta, saved[0])
        return gradient


class SigmoidKernel(ParameterFree):
    """y = 1 / (1 + e^-x), dy/dx = y (1 - y)."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        outputs = inputs.sigmoid()
        return outputs, (outputs,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.sigmoid_backward(delta, saved[0])
        return gradient


class ReluKernel(ParameterFree):
    """y = max(x, 0); its gradient at 0 is 0, as PyTorch's is."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        outputs = inputs.relu()
        return outputs, (outputs,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.threshold_backward(delta, saved[0], 0)
        return gradient


@dataclass(frozen=True, slots=True)
class FlattenKernel(ParameterFree):
    """A record's entries as one vector, in PyTorch's order: channels before rows before columns."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Saved]:
        ordered = inputs.permute(0, 1, 4, 2, 3) if inputs.dim() == 5 else inputs
        return ordered.reshape(*inputs.shape[:2], -1), (inputs,)

    def input_gradient(self, parameters: Sequence[Tensor], saved: Saved, delta: Tensor) -> Tensor:
        (inputs,) = saved
        if inputs.dim() != 5:
            return delta.view(inputs.shape)
        clients, records, height, width, channels = inputs.shape
        return delta.view(clients, records, channels, height, width).permute(0, 1, 3, 4, 2).contiguous()
