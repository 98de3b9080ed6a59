"""What a client makes of its records in a round, as privacy sees it: its grid, and how far one unit reaches.

How it is computed stands in `fedlearn.round.client_work`.
"""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from fedlearn.privacy.clipping import Vector, clip_by_l2_norm
from fedlearn.privacy.quantization import IntVector, truncate, truncate_within

if TYPE_CHECKING:
    from fedlearn.privacy.plan import Plan

__all__ = ["PRIVATE_STEPS", "RECORD_SUM", "UPDATE", "Work"]

# A record's norm and its clipped gradient are computed in float32: room for their rounding.
_ROUNDING = 1 + Fraction(1, 2**10)
# The grid of private steps, in units of max_grad_norm (docs/specification/privacy.md 3.2).
_LOCAL_GRID_BITS = 18


class Work:
    """What is common to the kinds of work. Here: a client's update, bounded as a whole. Instances have no state.

    Guarantees:
        changing one unit moves the sum of what `to_grid` gives by at most `sensitivity` in L2 (private steps: moves the
        sum that one step releases);
        rows do not depend on each other.
    """

    __slots__ = ()

    name: ClassVar[str]
    of_records: ClassVar[bool] = False  # bounded record by record

    def sensitivity(self, *, clip_bound: int, scale: int, max_grad_norm: Fraction | None, dimension: int) -> int:
        """The L2 distance in grid units by which one unit can move what is released.

        `clip_bound` is floor(scale * clipping_norm). Here: a client's update, checked in integers.
        """
        del scale, max_grad_norm, dimension
        return clip_bound

    def record_units(self, *, scale: int, max_grad_norm: Fraction | None) -> Fraction | None:
        """How many grid units one record's gradient may be long; None where records are not what is summed."""
        del scale, max_grad_norm
        return None

    def divisor(self, *, planned_cohort: int, sampling_probability: Fraction, planned_records: int | None) -> Fraction:
        """The public constant by which a sum becomes a mean, without the scale. Never a count."""
        del sampling_probability, planned_records
        return Fraction(planned_cohort)

    def planned_batch(
        self, *, planned_cohort: int, sampling_probability: Fraction, planned_records: int | None
    ) -> Fraction | None:
        """The public number of records by which a client divides its own step's sum; None where it divides none."""
        del planned_cohort, sampling_probability, planned_records
        return None

    def sums_in_release(self, local_steps: int | None) -> int:
        """How many noised sums one release holds."""
        del local_steps
        return 1

    def to_grid(self, vectors: Vector, plan: "Plan") -> IntVector:
        """Clip and truncate row by row, (n, d) float64 -> (n, d) int64: each row's L2 norm is at most `clip_bound`."""
        return truncate_within(vectors, scale=2**plan.scale_bits, sensitivity=plan.clip_bound)

    def server_factor(self, learning_rate: float) -> float:
        """What the mean is multiplied by: an update already points downhill."""
        del learning_rate
        return 1.0


class _OfRecords(Work):
    """What is truncated is a sum over records."""

    __slots__ = ()
    of_records = True

    def sensitivity(self, *, clip_bound: int, scale: int, max_grad_norm: Fraction | None, dimension: int) -> int:
        """ceil(units (1 + 2^-10)), and ceil(sqrt d) for truncation (docs/specification/privacy.md 3.2)."""
        del clip_bound
        units = self.record_units(scale=scale, max_grad_norm=max_grad_norm)
        assert units is not None
        return math.ceil(units * _ROUNDING) + math.isqrt(dimension - 1) + 1

    def to_grid(self, vectors: Vector, plan: "Plan") -> IntVector:
        """Project into the ball of the clipping norm, truncate once: the sensitivity to one record stays."""
        return truncate(clip_by_l2_norm(vectors, plan.clipping_norm), 2**plan.scale_bits, overwrite=True)


class _RecordSum(_OfRecords):
    """The sum of clipped per-record gradients."""

    __slots__ = ()
    name = "record-sum"

    def record_units(self, *, scale: int, max_grad_norm: Fraction | None) -> Fraction | None:
        """s C."""
        assert max_grad_norm is not None
        return scale * max_grad_norm

    def divisor(self, *, planned_cohort: int, sampling_probability: Fraction, planned_records: int | None) -> Fraction:
        """The planned number of records in a sum."""
        del planned_cohort
        assert planned_records is not None
        return sampling_probability * planned_records

    def server_factor(self, learning_rate: float) -> float:
        """A gradient points uphill."""
        return -learning_rate


class _PrivateSteps(_OfRecords):
    """The update of DP-SGD steps that are each noised where they are made."""

    __slots__ = ()
    name = "private-steps"

    def record_units(self, *, scale: int, max_grad_norm: Fraction | None) -> Fraction | None:
        """2^18: a step's sum lies on its own grid (docs/specification/privacy.md 3.2)."""
        del scale, max_grad_norm
        return Fraction(1 << _LOCAL_GRID_BITS)

    def planned_batch(
        self, *, planned_cohort: int, sampling_probability: Fraction, planned_records: int | None
    ) -> Fraction | None:
        """The planned records of a batch, divided evenly among the cohort."""
        assert planned_records is not None
        return sampling_probability * planned_records / planned_cohort

    def sums_in_release(self, local_steps: int | None) -> int:
        """One a step."""
        assert local_steps is not None
        return local_steps


class _Update(Work):
    """The update of plain local SGD, clipped as a whole."""

    __slots__ = ()
    name = "update"


RECORD_SUM, PRIVATE_STEPS, UPDATE = _RecordSum(), _PrivateSteps(), _Update()
