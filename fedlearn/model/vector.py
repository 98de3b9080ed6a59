"""Named parameters of a module that are trained <-> one flat float64 vector.

A frozen parameter (`requires_grad` is False) is what the model's builder made it: it is not sent, and gets no noise.

The order is that of `Module.named_parameters`: Flower's strategies pair tensors by position, and safetensors sorts
names on load, so nothing else may decide it.
"""

import numpy as np
import torch
from torch import nn

from fedlearn.model.layout import Layout
from fedlearn.privacy.clipping import Vector

__all__ = ["layout_of", "read_parameters", "trained_parameters", "write_parameters"]


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are in the vector, in its order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def layout_of(model: nn.Module) -> Layout:
    """The layout of `model`'s trained parameters."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return Layout(tuple(name for name, _ in named), tuple(tuple(parameter.shape) for _, parameter in named))


def read_parameters(model: nn.Module) -> Vector:
    """A copy of the trained parameters as one (d,) float64 vector."""
    flat = [parameter.detach().cpu().to(torch.float64).reshape(-1) for parameter in trained_parameters(model)]
    return torch.cat(flat).numpy() if flat else np.zeros(0)


def write_parameters(model: nn.Module, vector: Vector) -> None:
    """Set the trained parameters in place from a (d,) vector, cast to each parameter's own dtype."""
    with torch.no_grad():
        for parameter, values in zip(trained_parameters(model), layout_of(model).split(vector).values(), strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(parameter.shape))
