"""Named parameters of a module <-> one flat float64 vector.

The order is that of `Module.named_parameters`: Flower's strategies pair tensors by position, and safetensors sorts
names on load, so nothing else may decide it.
"""

import numpy as np
import torch
from torch import nn

from fedlearn.layout import Layout
from fedlearn.privacy.clipping import Vector

__all__ = ["layout_of", "read_parameters", "write_parameters"]


def layout_of(model: nn.Module) -> Layout:
    """The layout of `model`'s parameters."""
    named = list(model.named_parameters())
    return Layout(tuple(name for name, _ in named), tuple(tuple(parameter.shape) for _, parameter in named))


def read_parameters(model: nn.Module) -> Vector:
    """A copy of the parameters as one (d,) float64 vector."""
    flat = [parameter.detach().cpu().to(torch.float64).reshape(-1) for parameter in model.parameters()]
    return torch.cat(flat).numpy() if flat else np.zeros(0)


def write_parameters(model: nn.Module, vector: Vector) -> None:
    """Set the parameters in place from a (d,) vector, cast to each parameter's own dtype."""
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), layout_of(model).split(vector).values(), strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
