"""The protocol `Task`: what a target is, what it costs to miss it, and how well a model does.

Everything that trains asks the task: the loop, the sums of clipped gradients, the stacked kernels and the scores. A new
task is one file with one subclass.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Targets", "Task"]

Targets = NDArray[Any]  # (n, *target shape): int64 for classes, float32 for numbers


class Task(ABC):
    """What is learnt from each record by itself.

    A task is a value: equal public constants, equal task. Override `outputs`, `losses`, `made_up_targets` and `scores`;
    `residual` where there is a formula; `fits` where an output may fit and its target not. Nothing in it may look at
    two records together: a loss that does would let one record act on another's gradient, past its clip.

    >>> class Distance(Task):
    ...     "A number, missed by so much."
    ...     kind = "distance"
    ...     outputs = 1
    ...     def losses(self, outputs, targets):
    ...         return (outputs[..., 0] - targets).abs()
    ...     def made_up_targets(self, count):
    ...         return np.linspace(-1, 1, count, dtype=np.float32)
    ...     def scores(self, outputs, targets):
    ...         return {"mae": float(self.losses(outputs, targets).mean())}
    >>> import torch
    >>> Distance().residual(torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 1.0]))
    tensor([[ 1.],
            [-1.]])
    """

    __slots__ = ()

    kind: ClassVar[str]
    each: ClassVar[str] = "output"  # what each of the outputs stands for, in a sentence

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers a model gives for a record."""

    @abstractmethod
    def losses(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The loss of each record, (n,); `outputs` is (n, outputs), `targets` (n, *target shape)."""

    @abstractmethod
    def made_up_targets(self, count: int) -> Targets:
        """So many targets of every sort, for trying a model out before a record is read."""

    @abstractmethod
    def scores(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, Any]:
        """How well `outputs` (n, outputs) float64 meet `targets`, by name; there is at least one record."""

    def residual(self, outputs: "Tensor", targets: "Tensor", axis: int = -1) -> "Tensor":
        """The gradient of each record's own loss by its outputs, which lie along `axis`; of the shape of `outputs`.

        By autograd of `losses`, unless a task has a formula.
        """
        import torch

        with torch.enable_grad(), torch.inference_mode(False):
            rows = outputs.movedim(axis, -1).clone().requires_grad_()
            flat = rows.flatten(0, -2)
            own = targets.clone().flatten(0, rows.dim() - 2)
            (found,) = torch.autograd.grad(self.losses(flat, own).sum(), rows)
        return found.movedim(-1, axis)

    def fits(self, outputs: "Tensor", target: "Tensor") -> bool:
        """Whether `outputs` of one record have the shape for a loss with `target`."""
        del target
        return outputs.shape == (1, self.outputs)

    def blank_targets(self, count: int) -> Targets:
        """So many targets that stand for nothing, of the dtype and shape of this task's."""
        one = self.made_up_targets(1)
        return np.zeros((count, *one.shape[1:]), one.dtype)
