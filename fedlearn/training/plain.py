"""Which models are plain: layers of PyTorch one after the other, with nothing that changes what they compute.

For such a model the types of its layers say everything, so it may be computed for many records at once: in closed form,
by stacked kernels, or by Opacus. Whoever does that asks `plain_layers` first; any other model is computed record by
record (`training.isolation`).
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as every_module

__all__ = ["plain_layers"]

_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict))
_DTYPES = (torch.float32, torch.float64)


def plain_layers(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a plain `nn.Sequential`, nested ones too, or of a model that is one layer; else None.

    Guarantees, for the layers that come back:
        no hook of any kind is on a module, on a parameter, or on all modules: so neither pruning nor the old
        `weight_norm`, which are hooks;
        no method is replaced on an instance, no buffer and no further module is in a layer;
        every parameter is trained, in float32 or float64, and belongs to one layer alone.

    What a layer computes is said by its type, which the caller has to look at; a parametrized layer has another.
    """
    layers = list(_leaves(model))
    owned = [id(parameter) for layer in layers for parameter in layer.parameters()]
    in_layers = len(owned) == len(set(owned)) == len(list(model.parameters()))
    everything_is_plain = (
        not every_module._has_any_global_hook()  # type: ignore[no-untyped-call]
        and all(_is_untouched(module) for module in model.modules())
        and all(_is_bare(layer) for layer in layers)
        and in_layers
    )
    return layers if everything_is_plain else None


def _leaves(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is nn.Sequential:
        for part in model:
            yield from _leaves(part)
    else:
        yield model


def _is_untouched(module: nn.Module) -> bool:
    """Whether a module does what its class says: no hook, no attribute in the place of a method."""
    hooked = any(vars(module).get(name) for name in _HOOKS)
    replaced = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return not hooked and not replaced


def _is_bare(layer: nn.Module) -> bool:
    """Whether a layer has `weight` and `bias` at most, each trained, in float32 or float64, and without hooks."""
    inside = next(layer.children(), None) is not None or next(layer.buffers(), None) is not None
    return not inside and all(
        name in ("weight", "bias") and _is_common(parameter) for name, parameter in layer.named_parameters()
    )


def _is_common(parameter: nn.Parameter) -> bool:
    hooked = parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    return type(parameter) is nn.Parameter and parameter.requires_grad and not hooked and parameter.dtype in _DTYPES
