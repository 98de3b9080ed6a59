"""A client's local work: weights and records -> an update, or a sum of clipped gradients; both a `Vector`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlearn.crypto.keystream import Entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import read_parameters, trained_parameters, write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector, truncate
from fedlearn.privacy.sampling import poisson_sample
from fedlearn.training.device import in_memory, one_thread
from fedlearn.training.record_sums import clipped_gradient_sum

__all__ = [
    "NoGradientError",
    "OnFailure",
    "StepNoise",
    "SumAlone",
    "batches",
    "record_sum",
    "step_units",
    "train_privately",
    "train_update",
]

_log = logging.getLogger(__name__)

# (standard deviation in grid units, number of entries, entropy) -> (entries,) int64
StepNoise = Callable[[int, int, Entropy], IntVector]

# (weights, records, max_grad_norm) -> (d,): the sum of clipped gradients, each the same bits whoever else is there.
SumAlone = Callable[[Vector, Dataset, float], Vector]

# Told of an exception that was taken for zeros.
OnFailure = Callable[[Exception], None]

_STEP_GRID = 1 << 18  # grid points per max_grad_norm in record-local (docs/specification/privacy.md 3.2)


class NoGradientError(Exception):
    """Records were chosen, and the sum of their gradients is zero in every entry."""


def record_sum(
    model: nn.Module,
    weights: Vector,
    records: Dataset,
    *,
    sampling_probability: Fraction,
    max_grad_norm: float,
    entropy: Entropy,
    device: str,
    alone: SumAlone | None = None,
) -> Vector:
    """Mode record-distributed: the sum of clipped gradients over the records that the client's own coins choose.

    `weights` is (d,); the result is (d,) float64 with the gradient's sign. A probability of 1 takes every record and
    draws no coin. `entropy` is secret and fresh. `alone` computes for `model` what a deployed holder may send.

    Guarantees: those of `clipped_gradient_sum`; which records were taken does not leave.

    Raises:
        NoGradientError: none of the chosen records gives a gradient; what this stands for is zeros.
    """
    with one_thread():
        chosen = poisson_sample(len(records), sampling_probability, entropy)
        return _gradient_sum(model, weights, records, chosen, max_grad_norm=max_grad_norm, device=device, alone=alone)


def train_privately(
    model: nn.Module,
    weights: Vector,
    records: Dataset | None,
    *,
    local_steps: int,
    learning_rate: float,
    max_grad_norm: float,
    sampling_probability: Fraction,
    planned_batch: Fraction,
    step_noise_std: int,
    step_noise: StepNoise,
    entropy: Entropy,
    device: str,
    alone: SumAlone | None = None,
    on_failure: OnFailure = lambda _: None,
) -> Vector:
    """Mode record-local: `local_steps` steps of DP-SGD, each with the full noise; the update w_local - w, (d,) float64.

    A step truncates the sum of clipped gradients to the grid of 2^-18 * `max_grad_norm`, adds `step_noise` of standard
    deviation `step_noise_std` grid units, and divides by `planned_batch`, a public constant
    (docs/specification/privacy.md 3.4). `records` is None where they could not be read: each step is then noise alone.
    `alone` is as in `record_sum`, `on_failure` is told of every step that failed.

    Guarantees:
        every step is taken and noised, also without a record in the batch, or in the data set;
        the size of the noise does not depend on the number of records;
        whatever the gradients raise is logged here and counts as zeros: this mode has no noise but the steps' own, so
        zeros without it would show that something failed.
    """
    grid, step = step_units(learning_rate=learning_rate, max_grad_norm=max_grad_norm, planned_batch=planned_batch)
    local = weights.astype(np.float64)
    with one_thread():
        for _ in range(local_steps):
            clean = np.zeros_like(local)
            if records is not None:
                chosen = poisson_sample(len(records), sampling_probability, entropy)
                try:
                    clean = _gradient_sum(
                        model, local, records, chosen, max_grad_norm=max_grad_norm, device=device, alone=alone
                    )
                except Exception as error:  # a step without noise would show it (docs/specification/privacy.md 3.5)
                    _log.exception("the gradients of a step failed; zeros and noise are taken")
                    on_failure(error)
            local -= step * (truncate(clean, grid) + step_noise(step_noise_std, len(local), entropy))
    return local - weights


def train_update(
    model: nn.Module,
    weights: Vector,
    records: Dataset,
    *,
    local_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: Sequence[int],
    device: str,
) -> Vector:
    """Client modes and `none`: plain SGD on batches in a seeded order; the update w_local - w, (d,) float64.

    The unit is the client, so the order of its records is no secret: it is shuffled by `seed` pass by pass, and a
    client with fewer than `batch_size` records uses them all in each step. No weight decay, no proximal term.

    Guarantees:
        without records the update is exactly zero;
        the same seed gives the same update, of a model with dropout too; PyTorch's generator is left as it was;
        where memory does not suffice for a batch, its gradient is computed in parts.
    """
    if len(records) == 0:
        return np.zeros_like(weights)
    drawing = [device] if device.startswith("cuda") else []
    with one_thread(), torch.random.fork_rng(devices=drawing):
        torch.manual_seed(_one_number(seed))  # noqa: TID251 - dropout of modes whose unit is the client
        write_parameters(model.to(device), weights)
        start = read_parameters(model)
        model.train()
        parameters = trained_parameters(model)
        size = batch_size
        for chosen in batches(len(records), batch_size, local_steps, seed):
            batch = records.take(chosen)
            gradients, size = in_memory(lambda at, batch=batch: _gradients(model, parameters, batch, device, at), size)  # type: ignore[misc]
            # By hand: torch.optim loads torch's compiler, two seconds and a hundred megabytes for one subtraction.
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=learning_rate)
        return read_parameters(model) - start


def _gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], batch: Dataset, device: str, size: int
) -> list[Tensor | None]:
    """The gradients of a batch's mean loss, computed for at most `size` of its records at a time."""
    dtype = parameters[0].dtype
    total: list[Tensor | None] | None = None
    for start in range(0, len(batch), size):
        inputs = torch.from_numpy(batch.features[start : start + size]).to(device, dtype)
        targets = torch.from_numpy(batch.labels[start : start + size]).to(device)
        loss = batch.task.losses(model(inputs), targets).mean() * (len(targets) / len(batch))
        part = torch.autograd.grad(loss, parameters, allow_unused=True)
        total = list(part) if total is None else [_added(a, b) for a, b in zip(total, part, strict=True)]
    if total is None:
        raise AssertionError("a batch has a record")
    return total


def _one_number(seed: Sequence[int]) -> int:
    """A seed of several numbers as the one that PyTorch takes."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])  # noqa: TID251 - as for batches


def _added(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return right if left is None else left if right is None else left + right


def _gradient_sum(
    model: nn.Module,
    weights: Vector,
    records: Dataset,
    chosen: NDArray[np.int64],
    *,
    max_grad_norm: float,
    device: str,
    alone: SumAlone | None,
) -> Vector:
    batch = records if len(chosen) == len(records) else records.take(chosen)
    if alone is not None:
        total = alone(weights, batch, max_grad_norm)
    else:
        write_parameters(model, weights)
        total = clipped_gradient_sum(model, batch, max_grad_norm=max_grad_norm, device=device)
    if len(batch) and not total.any():
        raise NoGradientError(f"none of {len(batch)} records gives a gradient: the model raises, or gives no number")
    return total


def step_units(*, learning_rate: float, max_grad_norm: float, planned_batch: Fraction) -> tuple[Fraction, float]:
    """Of a step of record-local: grid units in a gradient of length 1, and how far one unit moves a weight."""
    grid = Fraction(_STEP_GRID) / Fraction(repr(max_grad_norm))
    return grid, learning_rate / float(planned_batch * grid)


def batches(records: int, batch_size: int, steps: int, seed: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Indices of each step's batch: one shuffled pass over the records after the other, cut into equal batches."""
    generator = np.random.default_rng(seed)  # noqa: TID251 - batches of modes whose unit is the client
    size, waiting = min(batch_size, records), np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = np.concatenate([waiting, generator.permutation(records)])
        yield waiting[:size]
        waiting = waiting[size:]
