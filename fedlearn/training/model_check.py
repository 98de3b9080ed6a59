"""One check that a model can be trained as its mode trains, before any record is read."""

import copy
import textwrap

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import layout_of, trained_parameters
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.task.task import Task
from fedlearn.training.isolation import lone_gradient

__all__ = ["check_model"]

_LONGEST_REASON = 160  # characters
_MADE_UP = 8  # records, so that a model which sends them to experts has some for each
_TOLERANCE = (
    1e-3  # of a gradient's norm: above the rounding of float32, far below what a layer that couples records does
)


def check_model(model: nn.Module, *, input_shape: tuple[int, ...], task: Task, unit: PrivacyUnit | None) -> None:
    """Refuse a model that cannot be trained, whose result would be wrong, or that does not fit the privacy unit.

    Layers that are known to be unfit are named with what to use instead; whatever a list of types cannot decide is
    tried on made-up records, of values between -1 and 1. The model is not changed, PyTorch's generator neither.

    Guarantees, for a model that passes:
        it gives one finite logit a class for each record, and its gradients are finite;
        a step changes no buffer: buffers do not travel, so what they learnt would be missing in the result;
        where anything is private, every trained parameter is used, so none receives noise for nothing;
        where the unit is the record, nothing in it is drawn at random, and trained parameters are float32 or float64:
        halves round by more than the bound allows.

    Whether it keeps records apart is not decided here: a model that is not known to is computed record by record
    (`training.isolation`). One that couples made-up records is refused where the unit is the record, for it would be
    trained on single records and scored in batches.

    Raises:
        ConfigError: one sentence with the layer and the remedy.
    """
    by_record = unit is PrivacyUnit.RECORD
    _refuse_parameters(model, by_record=by_record)
    for name, layer in model.named_modules():
        why = _unfit(layer, by_record=by_record)
        if why is not None:
            raise ConfigError(f"the model's layer {name or 'itself'} ({type(layer).__name__}) {why}")
    with torch.random.fork_rng(devices=[]):
        features, labels = _made_up(model, input_shape, task)
        together = _refuse_what_does_not_train(model, features, labels, task, private=unit is not None)
        if by_record:
            _refuse_what_is_not_of_single_records(model, task, features, labels, together)


def _refuse_parameters(model: nn.Module, *, by_record: bool) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                f"the model's parameter {name} is of {parameter.dtype}; expected real numbers, such as torch.float32"
            )
        if by_record and parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"the model's parameter {name} is of {parameter.dtype}, whose rounding lets one record count for more "
                "than max_grad_norm; use torch.float32"
            )
        if by_record and (parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)):
            raise ConfigError(
                f"the model's parameter {name} has a hook on its gradient, which is lost where each record is computed "
                "by a copy of the model; do without it"
            )


def _unfit(layer: nn.Module, *, by_record: bool) -> str | None:
    """Why a known layer cannot be trained, and what to use instead; None for any other."""
    if isinstance(layer, _BatchNorm):
        return (
            "makes a record depend on the others of its batch, and keeps statistics in buffers, which do not travel; "
            "use torch.nn.GroupNorm or LayerNorm"
        )
    if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        return (
            "keeps statistics of the records in buffers, which do not travel; use torch.nn.GroupNorm, or "
            "track_running_stats=False"
        )
    if by_record and isinstance(layer, _DropoutNd) and layer.p > 0:
        return "draws from PyTorch's seeded generator, and noise regularizes already; leave it out"
    return None


def _made_up(model: nn.Module, input_shape: tuple[int, ...], task: Task) -> tuple[Tensor, Tensor]:
    dtype = trained_parameters(model)[0].dtype
    count = torch.arange(_MADE_UP * torch.Size(input_shape).numel(), dtype=torch.float64)
    features = torch.sin(count * count).to(dtype).reshape(_MADE_UP, *input_shape)
    return features, torch.from_numpy(task.made_up_targets(_MADE_UP))


def _refuse_what_does_not_train(
    model: nn.Module, features: Tensor, labels: Tensor, task: Task, *, private: bool
) -> Tensor:
    """The gradient of all made-up records' summed loss, (d,) float64, where nothing is wrong with it."""
    own = _copied(model)
    buffers = {name: buffer.clone() for name, buffer in own.named_buffers()}
    _gradients(own, features[:1], labels[:1], task)
    found = _gradients(own, features, labels, task)
    for name, buffer in own.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise ConfigError(
                f"the model's buffer {name} changes while it trains, but buffers do not travel, so what it learns "
                "would be lost; use a layer without running statistics, such as torch.nn.GroupNorm"
            )
    for name, gradient in zip(layout_of(own).names, found, strict=True):
        if gradient is None and private:
            raise ConfigError(
                f"the model's parameter {name} is not used, so it would receive nothing but noise; remove it"
            )
        if gradient is not None and not torch.isfinite(gradient).all():
            raise ConfigError(
                f"the gradient of the model's parameter {name} is not finite for {_RECORDS}; bound what is divided "
                "by, and what roots and logarithms are taken of"
            )
    parameters = trained_parameters(own)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.to(torch.float64).flatten() for part in filled])


def _refuse_what_is_not_of_single_records(
    model: nn.Module, task: Task, features: Tensor, labels: Tensor, together: Tensor
) -> None:
    own = _copied(model)
    try:
        rows = [_alone(own, task, features, labels, index) for index in range(len(labels))]
        torch.rand(1)  # noqa: TID251 - moves the generator on: whatever draws from it differs now
        again = _alone(own, task, features, labels, 0)
    except Exception as error:  # a user's own layer may raise anything
        raise ConfigError(f"the model fails on {_RECORDS} ({_said(error)})") from error
    _refuse_differences(model, rows[0], again, _RANDOM)
    _refuse_differences(model, torch.stack(rows).sum(dim=0), together, _COUPLED)


def _alone(model: nn.Module, task: Task, features: Tensor, labels: Tensor, index: int) -> Tensor:
    record = Dataset(features[index : index + 1].numpy(), labels[index : index + 1].numpy(), task)
    return lone_gradient(copy.deepcopy(model), record)


_RECORDS = "made-up records with values between -1 and 1"
_RANDOM = "differs from one run to the next, so the model draws random numbers; leave them out"
_COUPLED = (
    "depends on the other records of the batch; let each record be computed by itself, normalized by "
    "torch.nn.GroupNorm or LayerNorm if at all"
)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu().train()
    except Exception as error:  # a user's own attribute may refuse in any way
        raise ConfigError(
            f"the model cannot be copied ({_said(error)}), and records are computed by copies of it; keep no computed "
            "tensors in attributes: instead of torch.nn.utils.weight_norm take "
            "torch.nn.utils.parametrizations.weight_norm, and make pruning permanent by prune.remove"
        ) from error


def _gradients(model: nn.Module, features: Tensor, labels: Tensor, task: Task) -> tuple[Tensor | None, ...]:
    """The gradient of the summed loss for each trained parameter by PyTorch; ConfigError where there is none."""
    expected = f"expected one tensor of logits, ({len(features)}, {task.outputs}): a number for each {task.each}"
    try:
        logits = model(features.clone())
    except Exception as error:  # a user's own layer may raise anything
        raise ConfigError(
            f"the model fails on {len(features)} record(s) of shape {tuple(features.shape[1:])} ({_said(error)}); "
            f"{expected}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(features), task.outputs):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"the model gives {came} for {len(features)} record(s); {expected}")
    if not logits.is_floating_point():
        raise ConfigError(f"the model gives logits of {logits.dtype}; expected real numbers, such as torch.float32")
    if not torch.isfinite(logits).all():
        raise ConfigError(
            f"the model gives logits that are not finite for {_RECORDS}; bound what is divided by, and what roots and "
            "logarithms are taken of"
        )
    loss = task.losses(logits, labels).sum()
    try:
        return torch.autograd.grad(loss, trained_parameters(model), allow_unused=True)
    except Exception as error:  # a backward pass of a user's own
        raise ConfigError(
            f"the model has no gradient ({_said(error)}); compute logits from its parameters by PyTorch, and write "
            "over no value in place that the gradient needs"
        ) from error


def _refuse_differences(model: nn.Module, first: Tensor, second: Tensor, what: str) -> None:
    layout = layout_of(model)
    parts = [torch.split(row, list(layout.sizes)) for row in (first, second)]
    largest = max(float(part.norm()) for part in parts[0])
    for name, a, b in zip(layout.names, *parts, strict=True):
        if not float((a - b).norm()) <= _TOLERANCE * largest:
            raise ConfigError(f"the gradient of the model's parameter {name} {what}")


def _said(error: Exception) -> str:
    """As much of an error as fits into a sentence; PyTorch's go on with hints."""
    return textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" ...") or type(error).__name__
