"""Scores of a model on public held-out records; computed at the coordinator, never on a client's records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.training.device import one_thread
from fedlearn.training.stacked.model import stack

__all__ = ["Scores", "evaluate"]

# Records whose logits are computed at once: on a CPU so few that they stay in the cache.
_CHUNK = {"cpu": 256}
_LARGE_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Scores:
    """How well a model does on public records."""

    accuracy: float  # share of records whose largest logit is that of their class
    loss: float  # mean cross-entropy in nats
    confusion: list[list[int]]  # [true class][predicted class], numbers of records
    per_class: list[dict[str, float | str]]  # a class each: name precision recall f1 support


def evaluate(model: nn.Module, weights: Vector, dataset: Dataset, *, device: str) -> Scores:
    """The scores of `model` with `weights` (d,) on all records of `dataset`, of which there is at least one.

    Precision, recall and F1 of a class that never occurs, or is never predicted, are 0. The model is in `eval` mode
    meanwhile and goes back to the mode that it was in.
    """
    if not (len(dataset) > 0):
        raise AssertionError("scores need at least one record")
    with one_thread():
        write_parameters(model.to(device), weights)
        logits, targets = _logits(model, dataset, device), torch.from_numpy(dataset.labels)
        loss = float(functional.cross_entropy(logits, targets))
        confusion, per_class = _by_class(logits.argmax(dim=1), targets, dataset.classes)
    accuracy = float(np.trace(confusion)) / len(dataset)
    return Scores(accuracy, loss, confusion.tolist(), per_class)


def _logits(model: nn.Module, dataset: Dataset, device: str) -> Tensor:
    """(n, classes) float64 on the CPU."""
    was_training, dtype = model.training, next(model.parameters()).dtype
    model.eval()
    try:
        with torch.inference_mode():
            features = torch.from_numpy(dataset.features)
            forward = _forward(model, features[:2].to(device, dtype))
            chunks = torch.split(features, _CHUNK.get(device, _LARGE_CHUNK))
            return torch.cat([forward(chunk.to(device, dtype)).cpu().to(torch.float64) for chunk in chunks])
    finally:
        model.train(was_training)


def _forward(model: nn.Module, some: Tensor) -> Callable[[Tensor], Tensor]:
    """The model; or the kernels that it is trained by, in half the time on a CPU, if they agree on `some` records."""
    stacked = stack(model)

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


def _by_class(
    predicted: Tensor, targets: Tensor, classes: tuple[str, ...]
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], list[dict[str, float | str]]]:
    from torchmetrics.functional.classification import (  # a second of import, only where something is scored
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    count = len(classes)
    confusion = multiclass_confusion_matrix(predicted, targets, count).numpy()
    columns = {
        "precision": multiclass_precision(predicted, targets, count, average="none").tolist(),
        "recall": multiclass_recall(predicted, targets, count, average="none").tolist(),
        "f1": multiclass_f1_score(predicted, targets, count, average="none").tolist(),
        "support": confusion.sum(axis=1).tolist(),
    }
    rows = [{key: values[i] for key, values in columns.items()} for i in range(count)]
    return confusion, [{"name": name, **row} for name, row in zip(classes, rows, strict=True)]
