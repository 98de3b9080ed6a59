"""The same steps through PyTorch's compiler, for long runs: what lies between two products becomes one loop.

One graph serves blocks of every size from two clients and two records on; smaller ones are computed as they are. What
was compiled is kept in the owner's own cache folder: in /tmp somebody else could have put something in its place.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from fedlearn.data.feature_cache import cache_folder
from fedlearn.training.stacked.model import StackedModel

__all__ = ["CompiledModel", "worth_compiling"]

_log = logging.getLogger(__name__)

# Multiply-adds from which on compiling, which takes a core some 25 s, saves more than it costs: 1e12 of them took 43 s
# on an x86 core, compiled 29 s. A count and not a clock, so that a run can be repeated bit by bit.
_WORTHWHILE: Final = 2e12
_PASSES: Final = 3  # forward, and backward by weights and by inputs
_TOLERANCE: Final = 1e-3  # of a result's length
_LEAST: Final = 2  # clients or records: of 1, the compiler makes a graph of its own

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


@dataclass(frozen=True, slots=True)
class CompiledModel(StackedModel):
    """A `StackedModel` whose steps are compiled at their first use.

    Guarantees:
        the first result of a step is compared with that of the kernels; where it differs by more than a thousandth of
        its length, or where nothing can be compiled on this machine, the kernels go on, and the log says so once.
    """

    _compiled: dict[str, Callable[..., Any] | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def gradient(self, rows: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """As `StackedModel.gradient`."""
        plain = StackedModel(self.kernels, self.shapes, self.task).gradient
        return self._run("gradient", plain, rows, inputs, targets, weights)

    def clipped(
        self, rows: Tensor, inputs: Tensor, targets: Tensor, present: Tensor, max_grad_norm: float
    ) -> tuple[Tensor, Tensor]:
        """As `StackedModel.clipped`."""
        plain = StackedModel(self.kernels, self.shapes, self.task).clipped
        return self._run("clipped", plain, rows, inputs, targets, present, max_grad_norm)

    def _run(
        self, name: str, plain: Callable[..., Result], rows: Tensor, inputs: Tensor, *batch: Tensor | float
    ) -> Result:
        if min(inputs.shape[:2]) < _LEAST:
            return plain(rows, inputs, *batch)
        if name not in self._compiled:
            return self._try(name, plain, rows, inputs, *batch)
        step: Callable[..., Result] = self._compiled[name] or plain
        return step(rows, inputs, *batch)

    def _try(self, name: str, plain: Callable[..., Result], rows: Tensor, *batch: Tensor | float) -> Result:
        """The first result, by the kernels; and what they find of the compiled one."""
        expected = plain(rows, *batch)
        self._compiled[name] = None
        try:
            step, found = _compile(plain, rows, *batch)
            difference = _apart(found, expected)
        except Exception as error:  # no compiler, no room, a version that fails: the kernels need none of it
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            _log.warning("training goes on without PyTorch's compiler: %s", reason)
            return expected
        if difference <= _TOLERANCE:
            self._compiled[name] = step
        else:
            _log.warning("the compiled step differs by %.1e of its length; training goes on without it", difference)
        return expected


def worth_compiling(model: StackedModel, plain: nn.Module, input_shape: tuple[int, ...], records: int) -> bool:
    """Whether steps of `model`, the stacked form of `plain`, on `records` records in all are worth compiling."""
    rows = model.pack([parameter.detach()[None] for parameter in plain.parameters()])
    return _PASSES * records * model.multiplications(rows, rows.new_zeros(1, 1, *input_shape)) >= _WORTHWHILE


def _compile(
    plain: Callable[..., Result], rows: Tensor, *batch: Tensor | float
) -> tuple[Callable[..., Result], Result]:
    """`plain` through the compiler, for any number of clients and records, and what it gives for these."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that outlives its use
    import torch._dynamo
    from torch.fx.experimental import _config as shapes  # two seconds and a hundred megabytes, only where it is used

    torch._dynamo.maybe_mark_dynamic(rows, 0)
    for tensor in (part for part in batch if isinstance(part, Tensor)):
        torch._dynamo.maybe_mark_dynamic(tensor, (0, 1))
    step = torch.compile(plain, fullgraph=True)
    # As many records as clients is an accident, no rule to compile in.
    with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]  # made when it is imported
        return step, step(rows, *batch)


def _apart(found: Result, expected: Result) -> float:
    """The length of the difference, as a share of that of `expected`; NaN where either is not finite."""
    one, other = (_as_one(result) for result in (found, expected))
    return float((one - other).norm() / other.norm().clamp(min=torch.finfo(torch.float64).tiny))


def _as_one(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    parts = (result,) if isinstance(result, Tensor) else result
    return torch.cat([part.double().flatten() for part in parts])
