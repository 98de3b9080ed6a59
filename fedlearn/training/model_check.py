"""One check that a model can be trained under differential privacy, before any record is read."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fedlearn.errors import ConfigError
from fedlearn.training.record_sums import has_closed_form, record_gradients

__all__ = ["check_private_model"]

_TOLERANCE = (
    1e-3  # of a gradient's norm: above the rounding of float32, far below what a layer that couples records does
)


def check_private_model(model: nn.Module, *, input_shape: tuple[int, ...], classes: int) -> None:
    """Refuse a model whose records would not be protected, or that Opacus cannot split into records.

    Layers that are known to be unfit are named with what to use instead; whatever a list of types cannot decide is
    tried on two made-up records. The model is not changed, PyTorch's generator neither.

    Guarantees, for a model that passes:
        the gradient of a record does not depend on the other records of its batch (BatchNorm makes it so);
        a step changes no buffer, so nothing but the noised parameters can carry what the records taught it;
        nothing in it is drawn at random (dropout reads PyTorch's seeded generator, which private modes never use);
        every parameter is trained, so none receives noise for nothing;
        Opacus' gradients of single records equal those of PyTorch.

    Raises:
        ConfigError: one sentence with the layer and the remedy.
    """
    _refuse_known_layers(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ConfigError(
                f"the model's parameter {name} is frozen, but noise is added to every parameter; make it a buffer, "
                "or compute what depends on it once, as features"
            )
    with torch.random.fork_rng(devices=[]):
        _try_on_two_records(copy.deepcopy(model).cpu(), input_shape, classes)


def _refuse_known_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        why = _unfit(layer)
        if why is not None:
            raise ConfigError(f"the model's layer {name or 'itself'} ({type(layer).__name__}) {why}")


def _unfit(layer: nn.Module) -> str | None:
    """Why a known layer cannot be trained under privacy, and what to use instead; None for any other."""
    if isinstance(layer, _BatchNorm):
        return "makes a record's gradient depend on the others of its batch; use torch.nn.GroupNorm or LayerNorm"
    if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        return "keeps statistics of the records in buffers; use torch.nn.GroupNorm, or track_running_stats=False"
    if isinstance(layer, _DropoutNd) and layer.p > 0:
        return "draws from PyTorch's seeded generator, and noise regularizes already; leave it out"
    if isinstance(layer, nn.MultiheadAttention):
        return "cannot be split into records; use opacus.layers.DPMultiheadAttention"
    if isinstance(layer, nn.RNNBase):
        return f"cannot be split into records; use opacus.layers.DP{type(layer).__name__}"
    return None


def _try_on_two_records(model: nn.Module, input_shape: tuple[int, ...], classes: int) -> None:
    dtype = next(model.parameters()).dtype
    count = torch.arange(2 * torch.Size(input_shape).numel(), dtype=dtype)
    features = torch.sin(count * count).reshape(2, *input_shape)
    labels = torch.tensor([0, classes - 1])
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    alone = [_gradients(model, features[i : i + 1], labels[i : i + 1], classes) for i in range(2)]
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise ConfigError(
                f"the model's buffer {name} changes while it trains, and would carry what records taught it past the "
                "noise; use a layer without running statistics, such as torch.nn.GroupNorm"
            )
    _refuse_differences(model, alone[0], _gradients(model, features[:1], labels[:1], classes), _RANDOM)
    together = _gradients(model, features, labels, classes)
    _refuse_differences(model, [a + b for a, b in zip(*alone, strict=True)], together, _COUPLED)
    if not has_closed_form(model):
        _refuse_what_opacus_misreads(model, features, labels, alone)


def _refuse_what_opacus_misreads(model: nn.Module, features: Tensor, labels: Tensor, alone: list[list[Tensor]]) -> None:
    try:
        rows = record_gradients(model, features, labels)
    except Exception as error:  # a layer of the user's own may fail inside Opacus in any way
        text = " ".join(str(error).split())
        raise ConfigError(f"Opacus cannot split the model's gradients into records ({text}); {_REMEDY}") from error
    sizes = [parameter.numel() for parameter in model.parameters()]
    for row, expected in zip(rows, alone, strict=True):
        _refuse_differences(model, list(torch.split(row, sizes)), expected, _MISREAD)


_REMEDY = "build it from torch.nn layers that each take one tensor, or from opacus.layers"
_RANDOM = "differs from one run to the next, so the model draws random numbers; leave them out"
_COUPLED = (
    "depends on the other records of the batch; let each record be computed by itself, normalized by "
    "torch.nn.GroupNorm or LayerNorm if at all"
)
_MISREAD = f"is not what Opacus computes for single records; {_REMEDY}"


def _gradients(model: nn.Module, features: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """The gradient of the summed loss by PyTorch, a flat tensor a parameter; ConfigError where there is none."""
    try:
        logits = model(features)
    except Exception as error:  # a user's own layer may raise anything
        text = " ".join(str(error).split())
        raise ConfigError(
            f"the model fails on {len(features)} record(s) of shape {tuple(features.shape[1:])} ({text}); "
            "expected logits of shape (n, classes)"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(features), classes):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the model gives {came} for {len(features)} record(s); expected ({len(features)}, {classes})"
        )
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), gradient in zip(model.named_parameters(), found, strict=True):
        if gradient is None:
            raise ConfigError(
                f"the model's parameter {name} is not used, so it would receive nothing but noise; remove it"
            )
    return [gradient.flatten() for gradient in found]


def _refuse_differences(model: nn.Module, first: list[Tensor], second: list[Tensor], what: str) -> None:
    largest = max(float(part.norm()) for part in first)
    for (name, _), a, b in zip(model.named_parameters(), first, second, strict=True):
        if not float((a - b).norm()) <= _TOLERANCE * largest:
            raise ConfigError(f"the gradient of the model's parameter {name} {what}")
