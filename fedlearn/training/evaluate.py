"""Scores of a model on public held-out records; computed at the coordinator, never on a client's records."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.task import Task
from fedlearn.training.device import one_thread
from fedlearn.training.stacked.model import stack

__all__ = ["evaluate"]

# Records whose logits are computed at once: on a CPU so few that they stay in the cache.
_CHUNK = {"cpu": 256}
_LARGE_CHUNK = 4096


def evaluate(model: nn.Module, weights: Vector, dataset: Dataset, *, device: str) -> Mapping[str, Any]:
    """The scores of `model` with `weights` (d,) on all records of `dataset`, of which there is at least one.

    They are those of the task. The model is in `eval` mode meanwhile and goes back to the mode that it was in.
    """
    if not (len(dataset) > 0):
        raise AssertionError("scores need at least one record")
    with one_thread():
        write_parameters(model.to(device), weights)
        return dataset.task.scores(_outputs(model, dataset, device), torch.from_numpy(dataset.labels))


def _outputs(model: nn.Module, dataset: Dataset, device: str) -> Tensor:
    """(n, outputs) float64 on the CPU."""
    was_training, dtype = model.training, next(model.parameters()).dtype
    model.eval()
    try:
        with torch.inference_mode():
            features = torch.from_numpy(dataset.features)
            forward = _forward(model, dataset.task, features[:2].to(device, dtype))
            chunks = torch.split(features, _CHUNK.get(device, _LARGE_CHUNK))
            return torch.cat([forward(chunk.to(device, dtype)).cpu().to(torch.float64) for chunk in chunks])
    finally:
        model.train(was_training)


def _forward(model: nn.Module, task: Task, some: Tensor) -> Callable[[Tensor], Tensor]:
    """The model; or the kernels that it is trained by, in half the time on a CPU, if they agree on `some` records."""
    stacked = stack(model, task)

    def as_it_is(inputs: Tensor) -> Tensor:
        return cast(Tensor, model(inputs.clone()))  # an in-place layer would write on the records themselves

    if stacked is None:
        return as_it_is
    packed = stacked.pack([parameter.detach()[None] for parameter in model.parameters()])

    def kernels(inputs: Tensor) -> Tensor:
        return stacked.logits(packed, inputs[None])[0]

    try:
        agree = torch.allclose(kernels(some), as_it_is(some), rtol=1e-4, atol=1e-4, equal_nan=True)
    except Exception:  # a model of the user's own, whose layers fit together in another way
        agree = False
    return kernels if agree else as_it_is
