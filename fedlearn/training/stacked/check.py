"""Before a model is stacked: its kernels against PyTorch's own gradients, in float64, on made-up clients."""

import copy
import logging

import numpy as np
import torch
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.task import Task
from fedlearn.training.local import train_update
from fedlearn.training.stacked.model import StackedModel, stack
from fedlearn.training.stacked.trainer import StackedTrainer

__all__ = ["checked_trainer", "made_up"]

_log = logging.getLogger(__name__)

_TOLERANCE = 1e-12  # of the largest entry, or of 1
_RECORDS = (3, 2)  # of the two made-up clients


def checked_trainer(
    model: nn.Module, *, input_shape: tuple[int, ...], task: Task, private: bool, device: str
) -> StackedTrainer | None:
    """The stacked trainer of `model`, or None, said in the log, where it differs from the loop: that one is right.

    Two made-up clients train in both ways; with `private`, their clipped gradients are compared record by record too.
    The model is not changed.
    """
    stacked = stack(model, task)
    if stacked is None:
        return None
    wide = copy.deepcopy(model).cpu().double()
    try:
        difference = _difference(wide, stacked, input_shape, task, private=private)
    except Exception:  # a model of the user's own may fail in any way, and the loop then says how
        _log.exception("the stacked form of the model fails; clients are trained one by one")
        return None
    if not difference <= _TOLERANCE:
        _log.warning("the stacked form of the model differs by %.1e; clients are trained one by one", difference)
        return None
    return StackedTrainer(stacked, layout_of(model), device, next(model.parameters()).dtype)


def _difference(
    model: nn.Module, stacked: StackedModel, input_shape: tuple[int, ...], task: Task, *, private: bool
) -> float:
    trainer = StackedTrainer(stacked, layout_of(model), "cpu", torch.float64)
    clients = [_client(number, count, input_shape, task) for number, count in enumerate(_RECORDS)]
    weights = _bent(read_parameters(model))
    settings = {"local_steps": 2, "batch_size": 2}
    seeds = [(0, number) for number in range(len(clients))]
    together = trainer.updates(weights, list(zip(clients, seeds, strict=True)), learning_rate=0.1, **settings)
    differences = [0.0]
    for row, held, seed in zip(together, clients, seeds, strict=True):
        alone = train_update(model, weights, held, learning_rate=0.1, seed=seed, device="cpu", **settings)
        differences.append(_apart(row, alone))
    if private:
        differences.append(_clipping_difference(model, trainer, clients[0]))
    return max(differences)


def _clipping_difference(model: nn.Module, trainer: StackedTrainer, held: Dataset) -> float:
    """Of one client's clipped sums, half of its records longer than the bound."""
    inputs, targets = torch.from_numpy(held.features).double(), torch.from_numpy(held.labels)
    rows = torch.stack([_gradient(model, held.task, inputs[i : i + 1], targets[i : i + 1]) for i in range(len(held))])
    norms = rows.norm(dim=1)
    bound = float(norms.median())
    expected = (torch.clamp(bound / norms, max=1)[:, None] * rows).sum(dim=0)
    start = trainer.model.pack([parameter.detach()[None] for parameter in model.parameters()])
    present = torch.ones(1, len(held), dtype=torch.float64)
    found = trainer.model.unpack(trainer.model.clipped_sum(start, inputs[None], targets[None], present, bound))
    return _apart(torch.cat([part.flatten() for part in found]).numpy(), expected.numpy())


def _gradient(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    found = torch.autograd.grad(task.losses(model(inputs), targets).sum(), list(model.parameters()))
    return torch.cat([part.flatten() for part in found])


def made_up(number: int, shape: tuple[int, ...]) -> Tensor:
    """Values of `shape` between -1 and 1 that look like chance, float64, others for each `number`; zeros for 0."""
    waves = torch.sin(torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.float64) * (number * 78.233)) * 43758.5453
    return (2 * (waves - waves.floor()) - min(number, 1)).view(shape)


def _client(number: int, count: int, input_shape: tuple[int, ...], task: Task) -> Dataset:
    labels = task.made_up_targets(count + number)[number:]
    features = made_up(number + 1, (count, *input_shape)).to(torch.float32).numpy()
    return Dataset(features, labels, task)


def _bent(weights: Vector) -> Vector:
    """The weights, none of them zero: a model that starts at zero would hide most of what could differ."""
    return weights + 0.01 * np.cos(np.arange(len(weights)))


def _apart(one: Vector, other: Vector) -> float:
    """The largest difference, as a share of the largest entry where that is above 1; NaN counts as one."""
    return float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
