"""Models by name. To add one: write a builder here and a line in `MODELS`.

A builder is called as builder(input_shape=..., classes=..., **options) and gives an `nn.Module` that maps records
(n, *input_shape) to logits (n, classes).
"""

import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite, prod
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedlearn.data.dataset import Dataset
from fedlearn.data.feature_cache import cached
from fedlearn.data.scattering import SCATTERING, Progress, scatter, scattering_shape
from fedlearn.errors import ConfigError
from fedlearn.model.vector import trained_parameters
from fedlearn.wording import did_you_mean

__all__ = ["MODELS", "Builder", "build_model", "model_features"]

Builder = Callable[..., nn.Module]

_MOST_LAYERS = 64
_MOST_WIDTH = 2**20


def build_linear(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """One linear layer over the flattened record; it starts at zero, so every client starts with equal odds."""
    head = nn.Linear(prod(input_shape), classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Flatten(), head)


def build_mlp(*, input_shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (64,)) -> nn.Module:
    """A perceptron with tanh (bounded, so gradients stay short) between its layers; `hidden` lists their widths."""
    if not isinstance(hidden, list | tuple) or not hidden or not all(type(w) is int and w > 0 for w in hidden):
        raise ConfigError(f"model.options.hidden is {hidden!r}; expected a list of layer widths, each at least 1")
    if len(hidden) > _MOST_LAYERS or max(hidden) > _MOST_WIDTH:
        raise ConfigError(
            f"model.options.hidden has {len(hidden)} layers, the widest of {max(hidden)}; expected at most "
            f"{_MOST_LAYERS} of at most {_MOST_WIDTH}"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    width = prod(input_shape)
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), nn.Tanh()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, classes))


def build_cnn(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The tanh network of 26,010 parameters (at ten classes) of Papernot et al. 2021, for images of 28 x 28."""
    if tuple(input_shape) != (1, 28, 28):
        raise ConfigError(
            f'model.name is "cnn", which is made for records of shape (1, 28, 28); this data set has '
            f'{tuple(input_shape)}: take "linear", "mlp" or a model of your own'
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(kernel_size=2, stride=1),
        nn.Conv2d(16, 32, kernel_size=4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(kernel_size=2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, classes),
    )


def build_scatter_linear(
    *, input_shape: tuple[int, ...], classes: int, order: int = 2, scale: float = 1.0
) -> nn.Module:
    """The linear head over scattering features; `order` and `scale` were applied by `model_features`."""
    del order, scale
    return build_linear(input_shape=input_shape, classes=classes)


MODELS: dict[str, Builder] = {
    "linear": build_linear,
    "mlp": build_mlp,
    "cnn": build_cnn,
    "scatter-linear": build_scatter_linear,
}


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    options: Mapping[str, object],
    seed: int,
    search: Sequence[Path] = (),
) -> nn.Module:
    """The model `name`: an entry of `MODELS`, or a user's own builder as "package.module:builder".

    `input_shape` is that of a record after `model_features`. Start weights come from `seed`; PyTorch's own generator is
    left as it was. A user's module is looked for in the folders of `search` in their order, then in the environment.

    Raises:
        ConfigError: the name, an option or the shape does not fit, or the user's own code fails.
    """
    builder = _own_builder(name, search) if ":" in name else _known_builder(name)
    _check_options(name, builder, options)
    with torch.random.fork_rng(devices=[]), _importable(search):
        torch.manual_seed(seed)  # noqa: TID251 - start weights, the same for everybody
        try:
            model = builder(input_shape=tuple(input_shape), classes=classes, **options)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # a user's own code may raise anything
            raise ConfigError(f'model.name is "{name}", whose builder failed: {_said(error)}') from error
    return _checked(name, model)


def model_features(
    name: str, *, options: Mapping[str, object], dataset: Dataset, progress: Progress | None = None
) -> Dataset:
    """The records as the model `name` takes them: scattering features for "scatter-linear", else `dataset` itself.

    The features of `dataset` (n, 1, height, width) become (n, 17 or 81, height/4, width/4), for `order` 1 or 2, times
    the public constant `scale`; they take about two minutes for 60,000 records, once, and are kept on disk. A record's
    features depend on that record alone. `progress` is called with (records done, records in all).

    Raises:
        ConfigError: an option or the shape of the records does not fit, or the cache cannot be written.
    """
    if name != "scatter-linear":
        return dataset
    _check_options(name, build_scatter_linear, options)
    order, scale = options.get("order", 2), options.get("scale", 1.0)
    if isinstance(order, bool) or not isinstance(order, int):
        raise ConfigError(f"model.options.order is {order!r}; expected 1 or 2")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (isfinite(scale) and scale > 0):
        raise ConfigError(f"model.options.scale is {scale!r}; expected a finite number above 0")
    features = cached(
        f"{SCATTERING}, order {order}",
        dataset.features,
        shape=(len(dataset), *scattering_shape(dataset.input_shape, order)),
        compute=lambda out: scatter(dataset.features, order=order, out=out, progress=progress),
    )
    return replace(dataset, features=features if scale == 1 else features * np.float32(scale))


def _known_builder(name: str) -> Builder:
    if name not in MODELS:
        meant = did_you_mean(name, MODELS)
        hint = f"; {meant}" if meant else ""
        raise ConfigError(
            f'model.name is "{name}"; expected one of {", ".join(MODELS)}, or a builder of your own as '
            f'"package.module:builder"{hint}'
        )
    return MODELS[name]


def _own_builder(name: str, search: Sequence[Path]) -> Builder:
    module_name, _, attribute = name.partition(":")
    if not (all(part.isidentifier() for part in module_name.split(".")) and attribute.isidentifier()):
        raise ConfigError(f'model.name is "{name}"; expected a builder of your own as "package.module:builder"')
    _refuse_other_module(name, module_name.split(".")[0], search)
    try:
        with _importable(search):
            importlib.invalidate_caches()
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's own code may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(_not_found(name, error.name or module_name)) from error
        raise ConfigError(f'model.name is "{name}", but importing {module_name} failed: {_said(error)}') from error
    builder = getattr(module, attribute, None)
    if not callable(builder):
        found = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise ConfigError(f'model.name is "{name}", but "{attribute}" {found} in {module.__file__}; name a function')
    return cast(Builder, builder)


def _refuse_other_module(name: str, package: str, search: Sequence[Path]) -> None:
    """Python keeps one module of a name: refuse to train the one loaded before where `search` has another."""
    loaded = sys.modules.get(package)
    wanted = importlib.machinery.PathFinder.find_spec(package, [str(folder.resolve()) for folder in search])
    if loaded is not None and wanted is not None and wanted.origin != getattr(loaded, "__file__", None):
        raise ConfigError(
            f'model.name is "{name}", found in {wanted.origin}, but another module "{package}" is loaded already; '
            "give yours another name"
        )


def _not_found(name: str, missing: str) -> str:
    return (
        f'model.name is "{name}", but there is no module "{missing}" in the folder of the TOML file, the working '
        "folder or the environment; put its file into one of these, or install its package"
    )


def _said(error: BaseException) -> str:
    """An exception as part of a sentence."""
    if isinstance(error, SystemExit):
        return "it ended the program (sys.exit, or an argument that argparse missed); options come from model.options"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _importable(search: Sequence[Path]) -> Iterator[None]:
    """Let `import` find the modules in the folders of `search`, before those of the environment.

    Code that parses the command line, as a script's does, finds it empty: it is this program's, not the model's.
    """
    folders = [str(folder.resolve()) for folder in search]
    before, arguments = list(sys.path), list(sys.argv)
    sys.path[:0] = folders
    del sys.argv[1:]
    try:
        yield
    finally:
        sys.path[:], sys.argv[:] = before, arguments


def _check_options(name: str, builder: Builder, options: Mapping[str, object]) -> None:
    parameters = inspect.signature(builder).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [option for option in parameters if option not in ("input_shape", "classes")]
    for option in options:
        if option not in known:
            expected = f"expected {' or '.join(known)}" if known else "it takes none"
            raise ConfigError(f'model.options.{option} is not an option of the model "{name}"; {expected}')


def _checked(name: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f'model.name is "{name}", whose builder gave {type(model).__name__}; expected an nn.Module')
    unsized = [path for path, parameter in model.named_parameters() if is_lazy(parameter)]
    if unsized:
        raise ConfigError(
            f'model.name is "{name}", whose parameter {unsized[0]} has no size yet; give its layer all sizes'
        )
    if not trained_parameters(model):
        frozen = " but frozen ones" if next(model.parameters(), None) is not None else ""
        raise ConfigError(f'model.name is "{name}", which has no parameters{frozen}; there is nothing to train')
    return model
