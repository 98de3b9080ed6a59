"""Classes: the model gives a logit a class, and the loss is cross-entropy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedlearn.task.task import Targets, Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Classification", "class_names"]


@dataclass(frozen=True)
class Classification(Task):
    """One of `classes`, as everybody may know them; a target is its number, int64."""

    classes: tuple[str, ...]
    kind: ClassVar[str] = "classification"
    each: ClassVar[str] = "class"

    @property
    def outputs(self) -> int:
        """A logit a class."""
        return len(self.classes)

    def losses(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """Cross-entropy in nats."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, reduction="none")

    def residual(self, outputs: "Tensor", targets: "Tensor", axis: int = -1) -> "Tensor":
        """softmax(logits) - onehot(targets)."""
        delta = outputs.softmax(dim=axis)
        places = targets.unsqueeze(axis)
        minus_one = delta.new_full((1,) * delta.dim(), -1.0).expand(places.shape)
        return delta.scatter_add_(axis, places, minus_one)

    def made_up_targets(self, count: int) -> Targets:
        """Class after class."""
        return np.arange(count, dtype=np.int64) % len(self.classes)

    def fits(self, outputs: "Tensor", target: "Tensor") -> bool:
        """One row, with a logit for the class: on a GPU another one would end the process."""
        return outputs.shape[0] == 1 and 0 <= int(target) < outputs.shape[1]

    def scores(self, outputs: "Tensor", targets: "Tensor") -> dict[str, Any]:
        """`accuracy`, `loss` in nats, `confusion` [true class][predicted class], and `per_class`.

        A class each has name, precision, recall, f1 and support; what never occurs, or is never predicted, has zeros.
        """
        from torchmetrics.functional.classification import (  # a second of import, only where something is scored
            multiclass_confusion_matrix,
            multiclass_f1_score,
            multiclass_precision,
            multiclass_recall,
        )

        count, predicted = len(self.classes), outputs.argmax(dim=1)
        confusion = multiclass_confusion_matrix(predicted, targets, count).numpy()
        columns = {
            "precision": multiclass_precision(predicted, targets, count, average="none").tolist(),
            "recall": multiclass_recall(predicted, targets, count, average="none").tolist(),
            "f1": multiclass_f1_score(predicted, targets, count, average="none").tolist(),
            "support": confusion.sum(axis=1).tolist(),
        }
        rows = [{key: values[i] for key, values in columns.items()} for i in range(count)]
        return {
            "accuracy": float(np.trace(confusion)) / len(targets),
            "loss": float(self.losses(outputs, targets).mean()),
            "confusion": confusion.tolist(),
            "per_class": [{"name": name, **row} for name, row in zip(self.classes, rows, strict=True)],
        }


def class_names(task: Task) -> tuple[str, ...]:
    """The classes of a classification, in the order of the model's outputs; nothing of another task."""
    return task.classes if isinstance(task, Classification) else ()
