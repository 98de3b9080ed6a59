"""What a deployed holder computes its gradients with: a record's part is the same bits, whoever else is there."""

from dataclasses import dataclass, field

from torch import nn

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.training.device import one_thread
from fedlearn.training.isolation import sum_in_isolation
from fedlearn.training.stacked.places import PlacedSums, checked_places

__all__ = ["AloneSums"]


@dataclass(slots=True)
class AloneSums:
    """Sums of clipped gradients of one model, which is written in place.

    A coordinator chooses the weights, and can choose them such that a gradient's direction hangs on its last bits. So
    where records share a computation each has a place of its own, and otherwise each is computed in isolation.

    Guarantees:
        a record that is added, left out or changed changes no bit of what another one adds.
    """

    model: nn.Module
    device: str
    _placed: dict[tuple[int, ...], PlacedSums | None] = field(default_factory=dict, repr=False)

    def __call__(self, weights: Vector, records: Dataset, max_grad_norm: float) -> Vector:
        """The sum of the records' gradients, each clipped to L2 norm `max_grad_norm`, (d,) float64; `weights` is (d,).

        A record whose gradient is not finite, or that raises, counts as zeros.
        """
        if records.input_shape not in self._placed:
            self._placed[records.input_shape] = checked_places(
                self.model, input_shape=records.input_shape, task=records.task, device=self.device
            )
        placed = self._placed[records.input_shape]
        if placed is not None:
            return placed.clipped_sum(weights, records, max_grad_norm)
        with one_thread():
            write_parameters(self.model.to(self.device), weights)
            return sum_in_isolation(self.model, records, max_grad_norm)
