"""Record by record: the gradient of one record, computed as if it were alone in the world.

A model of a user's own may couple records in ways that no check sees: trim a batch to its longest text, normalize over
the batch, send records to experts that are full, remember what it saw, or raise on one record and so lose all. Here it
never sees two records, so there is nothing to check.
"""

import copy
import logging
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import layout_of, trained_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.task import Task

__all__ = ["ExactSum", "gradients_side_by_side", "lone_gradient", "sum_in_isolation"]

_log = logging.getLogger(__name__)

_GRID = 1 << 40  # points in a gradient of the bound's length: sums are of integers
_LOW_BITS = 32


def sum_in_isolation(model: nn.Module, records: Dataset, max_grad_norm: float) -> Vector:
    """The sum of the records' gradients, each computed alone and clipped to L2 norm `max_grad_norm`; (d,) float64.

    The model stays on its device and is not changed: each record has a copy of it, with all attributes and buffers, and
    begins with the same state of PyTorch's generator. Code that keeps something outside of the model (a global, a
    variable that a function closes over) can still carry it along.

    Guarantees:
        one record more moves the sum by at most `max_grad_norm`, and the others' part of it by not one bit: clipped
        gradients are truncated to a grid, and summed as integers;
        a record that raises, gives no outputs for its target, or whose gradient is not finite counts as zeros.
    """
    total = ExactSum(layout_of(model).dimension)
    absent = 0
    for index in range(len(records)):
        gradient = _usable_gradient(copy.deepcopy(model), records.take(np.array([index])))
        if gradient is None:
            absent += 1
            continue
        longest = max(float(torch.linalg.vector_norm(gradient)), max_grad_norm)
        total.add(torch.trunc(gradient / longest * _GRID).to(torch.int64).numpy())
    if absent:
        _log.warning("%d of %d records give no finite gradient, and count as absent", absent, len(records))
    return total.nearest() * (max_grad_norm / _GRID)


class ExactSum:
    """A sum of vectors (d,) of integers below 2^62, exact for 2^32 of them.

    An int64 would be full after 2^23 records of the bound's length, and a count of records is nothing to refuse by:
    one record more must not make a holder's sum another one.
    """

    __slots__ = ("_high", "_low")

    def __init__(self, dimension: int) -> None:
        self._high, self._low = np.zeros(dimension, dtype=np.int64), np.zeros(dimension, dtype=np.int64)

    def add(self, values: NDArray[np.int64]) -> None:
        """Add `values` (d,)."""
        self._low += values
        self._high += self._low >> _LOW_BITS
        self._low &= (1 << _LOW_BITS) - 1

    def nearest(self) -> Vector:
        """The sum as float64, (d,)."""
        return (self._high * float(1 << _LOW_BITS) + self._low).astype(np.float64)


def lone_gradient(own: nn.Module, record: Dataset) -> Tensor:
    """The gradient of the loss of one record, (d,) float64 on the CPU; what it does not depend on is zero.

    `own` is a copy of the model for this record alone. Raises: whatever it raises.
    """
    own.train()
    parameters = trained_parameters(own)
    first = parameters[0]
    # A tensor of its own: where a record lies in memory must not choose its kernel, nor an in-place layer write on it.
    inputs = torch.from_numpy(record.features).to(first.device, first.dtype, copy=True)
    target = torch.from_numpy(record.labels)
    devices = [first.device] if first.device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        outputs = own(inputs)
        if not record.task.fits(outputs, target):
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} for one record with the target {target.tolist()}"
            )
        loss = record.task.losses(outputs, target.to(outputs.device)).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.detach().cpu().to(torch.float64).flatten() for part in found])


def gradients_side_by_side(model: nn.Module, task: Task, features: Tensor, labels: Tensor) -> Tensor:
    """The gradients of `lone_gradient` for many records at once, (n, d) float64, to rounding; for simulations.

    `features` is (n, *input_shape), `labels` (n,). Each record is a batch of one to the model, by `torch.func.vmap`,
    so it sees no other; but kernels compute them together, so last bits may hang on what else is there.

    Raises: whatever `vmap` raises for a model that it cannot follow: one that decides by values, or draws numbers.
    """
    own = copy.deepcopy(model).train()
    trained = {name: parameter.detach() for name, parameter in own.named_parameters() if parameter.requires_grad}

    def loss(parameters: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(own, parameters, (record[None].clone(),))
        return task.losses(outputs, label[None]).sum()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # still faster than the loop
        found = vmap(grad(loss), in_dims=(None, 0, 0))(trained, features, labels)
    rows = [part.detach().cpu().to(torch.float64).reshape(len(labels), -1) for part in found.values()]
    return torch.cat(rows, dim=1)


def _usable_gradient(own: nn.Module, record: Dataset) -> Tensor | None:
    try:
        gradient = lone_gradient(own, record)
    except (Exception, SystemExit):  # a user's own code; whatever it does about one record is that record's alone
        return None
    return gradient if bool(torch.isfinite(torch.linalg.vector_norm(gradient))) else None
