"""Room for a builder that has to make real tensors before anybody knows how large its model is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlearn.errors import ConfigError

__all__ = ["BoundedTensors", "check_entries"]

_MOST_ENTRIES: Final = 1 << 27  # of a model with all that is frozen in it: half a gigabyte of float32


def check_entries(count: int) -> None:
    """Refuse a model of more entries than any machine is asked to hold.

    Raises:
        ConfigError: with the figures.
    """
    if count > _MOST_ENTRIES:
        raise ConfigError(f"a model of {count} entries or more, frozen ones included; expected at most {_MOST_ENTRIES}")


class BoundedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which new tensors may have `_MOST_ENTRIES` entries together; ConfigError before there are more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what an operation without a tensor among its arguments makes, and then do it."""
        del types
        given = dict(kwargs or {})
        if not any(isinstance(value, torch.Tensor) for value in tree_leaves((args, given))) and "device" in given:
            made = func(*args, **{**given, "device": torch.device("meta")})
            self._made += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
            check_entries(self._made)
        return func(*args, **given)
