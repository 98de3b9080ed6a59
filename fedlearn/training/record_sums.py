"""Sums of clipped per-record gradients: what the record modes release, before noise.

The loss is that of the records' task. There are three ways to the sum, from fast to general:

* One linear layer over the flattened record has a closed form: the gradient is an outer product, so its norm is a
  product of norms.
* A plain sequence of layers that Opacus knows, each by its exact type to compute records by themselves, goes through
  Opacus' hooks, many records at once.
* Every other model is computed record by record, in isolation: by `torch.func.vmap` where it can follow the model, and
  gives what a single record gives, and otherwise one after the other.

A model whose layers all have a kernel comes here only to be compared (`training.stacked`).
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import layout_of
from fedlearn.privacy.clipping import Vector
from fedlearn.task.task import Task
from fedlearn.training.device import in_memory
from fedlearn.training.isolation import gradients_side_by_side, lone_gradient, sum_in_isolation
from fedlearn.training.plain import plain_layers

__all__ = ["clipped_gradient_sum", "has_closed_form"]

_ALIKE = 1e-3  # of a gradient's norm, above the rounding of float32
_CHUNK = 64  # records summed in float32 at most: one more record then moves the sum by rounding of 7e-5 * C, not 1e-2
_BLOCK_ENTRIES = 1 << 18  # features whose logits and norms are computed at once, to stay in the cache; sums stay chunks


def clipped_gradient_sum(model: nn.Module, records: Dataset, *, max_grad_norm: float, device: str) -> Vector:
    """The sum of the gradients of the records' losses, each clipped to L2 norm `max_grad_norm` over all
    parameters.

    The result is (d,) float64 in the order of `layout_of`, with the gradient's own sign. The model stays on `device`
    and is read at its own dtype, float64 too; its weights are not changed.

    Guarantees:
        a record whose gradient is longer than the bound counts with its direction and the length of the bound;
        a record inside the bound counts as it is;
        a record whose gradient, or the square of its norm, is not finite counts as zeros, and leaves the others alone;
        a model that is not known to keep records apart sees one at a time, and one that raises counts as zeros;
        no record at all gives zeros;
        float32 goes no further than a chunk of 64 records; factors and the sum over chunks are float64;
        where memory does not suffice for a chunk, chunks are smaller.

    Raises:
        ConfigError: `max_grad_norm` is not a finite number above zero.
    """
    if not (math.isfinite(max_grad_norm) and max_grad_norm > 0):
        raise ConfigError(f"max_grad_norm is {max_grad_norm}; expected a finite number above 0")
    if len(records) == 0:
        return np.zeros(layout_of(model).dimension)
    model.to(device)
    head = _linear_head(model)
    if head is not None:
        return _sum_in_closed_form(head, records, max_grad_norm)
    rows = _by_opacus if _known_to_opacus(model) else _by_vmap
    try:
        return in_memory(lambda size: _sum_of_rows(rows, model, records, max_grad_norm, size), _CHUNK)[0]
    except Exception:  # whatever vmap, or code of a user's own in it, may raise
        if rows is _by_opacus:
            raise
        return sum_in_isolation(model, records, max_grad_norm)


def has_closed_form(model: nn.Module) -> bool:
    """Whether `clipped_gradient_sum` needs no Opacus for `model`: it is one linear layer over the flattened record."""
    return _linear_head(model) is not None


def _by_opacus(model: nn.Module, task: Task, features: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each record, (n, d) float64, by Opacus.

    `features` is (n, *input_shape), `labels` (n,), both on the model's device and the first of its dtype.
    """
    from opacus.grad_sample.grad_sample_module import GradSampleHooks  # 3 seconds and 100 MB that linear heads save

    was_training = model.training
    model.train()
    with warnings.catch_warnings():
        # The input needs no gradient, so PyTorch says that the first layer's hook sees none for it: Opacus needs none.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooks = GradSampleHooks(model, loss_reduction="sum")
        try:
            task.losses(model(features), labels).sum().backward()  # type: ignore[no-untyped-call]
            samples: list[Tensor] = [parameter.grad_sample for parameter in model.parameters()]  # type: ignore[attr-defined]
        finally:
            hooks.cleanup()
            for layer in model.modules():
                vars(layer).pop("activations", None)  # what a forward pass left that failed in the middle
            model.zero_grad(set_to_none=True)
            model.train(was_training)
    return torch.cat([_wide(sample).flatten(1) for sample in samples], dim=1)


def _by_vmap(model: nn.Module, task: Task, features: Tensor, labels: Tensor) -> Tensor:
    """The same by `gradients_side_by_side`; RuntimeError where the first record alone gives something else."""
    rows = gradients_side_by_side(model, task, features, labels)
    first = Dataset(features[:1].cpu().numpy(), labels[:1].cpu().numpy(), task)
    alone = lone_gradient(copy.deepcopy(model), first)
    if not torch.allclose(rows[0], alone, rtol=_ALIKE, atol=_ALIKE * float(alone.norm()), equal_nan=True):
        raise RuntimeError("vmap computes another gradient")
    return rows


def _sum_of_rows(
    rows: Callable[[nn.Module, Task, Tensor, Tensor], Tensor],
    model: nn.Module,
    records: Dataset,
    max_grad_norm: float,
    size: int,
) -> Vector:
    total: Tensor | None = None
    for inputs, targets in _batches(model, records, size):
        gradients = rows(model, records.task, inputs, targets)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        factors, finite = _clip_factors(norms, max_grad_norm)
        gradients[~finite] = 0
        part = factors @ gradients
        total = part if total is None else total + part
    assert total is not None
    return total.cpu().numpy()


def _sum_in_closed_form(head: nn.Linear, records: Dataset, max_grad_norm: float) -> Vector:
    """With e the residual of the loss at Wx + b, a record's gradient is (e x^T, e), of norm |e| sqrt(|x|^2 + 1)."""
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    weight_sum = _wide(torch.zeros_like(weight))
    bias_sum = weight_sum.new_zeros(head.out_features)
    block = max(1, _BLOCK_ENTRIES // (head.in_features * _CHUNK)) * _CHUNK
    for inputs, targets in _batches(head, records, block):
        x = inputs.flatten(1)
        logits = weight @ x.T  # (classes, n): this shape of product is twice as fast as its transpose
        if bias is not None:
            logits += bias[:, None]
        residuals = records.task.residual(logits, targets, axis=0)
        norms = _wide(torch.linalg.vector_norm(x, dim=1)).square() + (bias is not None)
        norms = torch.sqrt(norms * _wide(residuals).square().sum(dim=0))
        factors, finite = _clip_factors(norms, max_grad_norm)
        if not finite.all():
            # 0 * NaN is NaN: the row of x has to go as well
            x, residuals = x.clone(), residuals.clone()
            x[~finite], residuals[:, ~finite] = 0, 0
        clipped = (_wide(residuals) * factors).to(x.dtype)
        for rows, columns in zip(torch.split(x, _CHUNK), torch.split(clipped, _CHUNK, dim=1), strict=True):
            weight_sum += _wide(columns @ rows)
        bias_sum += _wide(clipped).sum(dim=1)
    parts = [weight_sum.flatten()] if bias is None else [weight_sum.flatten(), bias_sum]
    return torch.cat(parts).cpu().numpy()


def _clip_factors(norms: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """What each record is multiplied with (n,), and whether its norm is finite (n,)."""
    finite = torch.isfinite(norms)
    factors = torch.clamp(max_grad_norm / norms, max=1.0)  # a norm of zero gives infinity, hence 1
    return torch.where(finite, factors, 0.0), finite


def _batches(model: nn.Module, records: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The records in their order, `size` at a time, with the dtype and on the device of the model's parameters."""
    parameter = next(model.parameters())
    for start in range(0, len(records), size):
        inputs = torch.from_numpy(records.features[start : start + size])
        targets = torch.from_numpy(records.labels[start : start + size])
        yield inputs.to(parameter.device, parameter.dtype), targets.to(parameter.device)


def _wide(tensor: Tensor) -> Tensor:
    """The same in float64; Apple's GPU has none, so there it is moved to the CPU."""
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def _linear_head(model: nn.Module) -> nn.Linear | None:
    """The one linear layer that is the whole model (after flattening), or None: then there is no closed form."""
    layers = plain_layers(model) or []
    if len(layers) > 1 and type(layers[0]) is nn.Flatten and (layers[0].start_dim, layers[0].end_dim) == (1, -1):
        layers = layers[1:]
    return layers[0] if len(layers) == 1 and type(layers[0]) is nn.Linear else None


def _known_to_opacus(model: nn.Module) -> bool:
    """Whether a model is plain and every layer keeps the records of dimension 0 apart, in a way that Opacus can see.

    By exact type. An in-place layer is none of them, for Opacus' hooks need its input; nor is an embedding, whose
    options may count over the batch.
    """
    layers = plain_layers(model)
    return layers is not None and all(
        type(layer) in _RECORD_WISE
        or (type(layer) is nn.Flatten and layer.start_dim == 1)
        or (type(layer) in _ACTIVATIONS and not getattr(layer, "inplace", False))
        for layer in layers
    )


_RECORD_WISE = frozenset(
    {
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.Conv1d,
        nn.Conv2d,
        nn.GroupNorm,
        nn.Identity,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.LayerNorm,
        nn.Linear,
        nn.MaxPool1d,
        nn.MaxPool2d,
    }
)
_ACTIVATIONS = frozenset(
    {
        nn.ELU,
        nn.GELU,
        nn.Hardswish,
        nn.Hardtanh,
        nn.LeakyReLU,
        nn.Mish,
        nn.ReLU,
        nn.SELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Tanh,
    }
)
