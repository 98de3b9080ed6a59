"""The five privacy modes: what a client sends, how far one unit can move it, who adds the noise, against whom it holds.

What a mode is stands here, in a class and a line in `MECHANISMS`; how a run of it is written down, in `config.py`.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from fedlearn.crypto.keystream import Entropy
from fedlearn.privacy.assumptions import (
    COMPUTATIONAL,
    HONEST_SHARES,
    ONE_SITE,
    SYSTEM_ENTROPY,
    TRUSTED_SERVER,
    UNMASKED,
)
from fedlearn.privacy.clipping import Vector, clip_by_l2_norm
from fedlearn.privacy.discrete_gaussian import LARGEST_NOISE_STD, discrete_gaussian
from fedlearn.privacy.guarantee import NEIGHBORING_RELATIONS, PrivacyUnit
from fedlearn.privacy.plan import Plan
from fedlearn.privacy.quantization import IntVector, truncate, truncate_within

__all__ = ["MECHANISMS", "Mechanism"]

# A record's norm and its clipped gradient are computed in float32: room for their rounding.
_ROUNDING = 1 + Fraction(1, 2**10)
# The grid of record-local, in units of max_grad_norm (docs/privacy-model.md).
_LOCAL_GRID_BITS = 18

_ACCOUNTED = frozenset({"privacy.target_epsilon", "privacy.delta", "privacy.max_participations"})
_RECORDS = frozenset({"privacy.max_grad_norm", "privacy.sampling_probability", "privacy.planned_records"})
_SUMMED = frozenset({"secure_aggregation.max_colluders"})
_LOCAL_SGD = frozenset({"training.local_steps", "training.batch_size"})

_MODELS_ONLY = "those who see only the models"


class Mechanism:
    """What is common to the modes, and what each must say. Instances have no state.

    Guarantees, for every mode:
        changing one unit moves the sum of what `to_grid` gives by at most `sensitivity` in L2 (record-local: moves the
        sum that one step releases);
        rows do not depend on each other.
    """

    __slots__ = ()

    name: ClassVar[str]
    code: ClassVar[int]  # privacy_mode of ctx, docs/protocol.md
    noise_by: ClassVar[Literal["shares", "clients", "server", "nobody"]]
    privacy_unit: ClassVar[PrivacyUnit | None]
    local_work: ClassVar[Literal["record-sum", "private-steps", "update"]]
    required: ClassVar[frozenset[str]]  # the configuration keys that this mode needs and another does not
    description: ClassVar[str]

    @property
    def private(self) -> bool:
        """Whether anything is guaranteed."""
        return self.privacy_unit is not None

    @property
    def neighboring_relation(self) -> str | None:
        """dp-accounting's name; fixed by the unit."""
        return NEIGHBORING_RELATIONS[self.privacy_unit] if self.privacy_unit else None

    @property
    def shares_noise(self) -> bool:
        """Whether the noise of a sum is made of one share a client."""
        return self.noise_by == "shares"

    def noise_in_simulation(self, *, summed: bool) -> str:
        """Who adds the noise, or what stands for it, in a simulation (docs/privacy-model.md).

        `summed`: masking is off and the engine sums vectors where they are made, with one draw for all shares.
        """
        if summed and self.shares_noise:
            return "aggregate"
        return "box-muller" if self.noise_by == "clients" else self.noise_by

    @property
    def samples_records(self) -> bool:
        """Whether secret coins choose records inside a client."""
        return self.privacy_unit is PrivacyUnit.RECORD

    @property
    def poisson_cohorts(self) -> bool:
        """Whether a Poisson cohort may be booked: where noise does not depend on who came (docs/privacy-model.md)."""
        return self.noise_by == "server"

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

    def to_grid(self, vectors: Vector, plan: Plan) -> IntVector:
        """Clip and truncate row by row, (n, d) float64 -> (n, d) int64: each row's L2 norm is at most `clip_bound`."""
        return truncate_within(vectors, scale=2**plan.scale_bits, sensitivity=plan.clip_bound)

    def noise_share(self, plan: Plan, shape: tuple[int, ...], entropy: Entropy) -> IntVector:
        """Each row's own share of the noise, (n, d) int64; zeros where clients add none to what they send."""
        if not self.shares_noise:
            return np.zeros(shape, dtype=np.int64)
        rows, dimension = shape
        noise = np.empty(shape, dtype=np.int64)
        for row in range(rows):
            discrete_gaussian(plan.noise_std, dimension, entropy, out=noise[row])
        return noise

    def noise_of_sum(self, plan: Plan, survivors: int, entropy: Entropy) -> IntVector:
        """What stands for the shares of `survivors` clients, (dimension,) int64; zeros where clients add none.

        In a simulation alone: one exact draw of standard deviation ceil(sqrt(survivors) * noise_std), at least that of
        the shares' sum (docs/privacy-model.md); several where one would be wider than the sampler can draw.
        """
        noise = np.zeros(plan.dimension, dtype=np.int64)
        if not self.shares_noise:
            return noise
        most = LARGEST_NOISE_STD**2 // plan.noise_std**2
        for first in range(0, survivors, most):
            variance = min(most, survivors - first) * plan.noise_std**2
            noise += discrete_gaussian(math.isqrt(variance - 1) + 1, plan.dimension, entropy)
        return noise

    def central_noise(self, plan: Plan, dimension: int, entropy: Entropy) -> IntVector:
        """What the server adds to the sum, (dimension,) int64; zeros where it adds none."""
        if self.noise_by != "server":
            return np.zeros(dimension, dtype=np.int64)
        return discrete_gaussian(plan.central_noise_std, dimension, entropy)

    def server_factor(self, learning_rate: float) -> float:
        """What the mean is multiplied by: an update already points downhill."""
        del learning_rate
        return 1.0

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        """Whom the guarantee of one client's participations covers."""
        raise NotImplementedError

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        """What the guarantee rests on besides arithmetic."""
        raise NotImplementedError


class _RecordMode(Mechanism):
    """What is truncated is a sum over records."""

    __slots__ = ()
    privacy_unit = PrivacyUnit.RECORD

    def sensitivity(self, *, clip_bound: int, scale: int, max_grad_norm: Fraction | None, dimension: int) -> int:
        """ceil(units (1 + 2^-10)) + ceil(sqrt d): truncating moves entries by one more (docs/privacy-model.md)."""
        del clip_bound
        units = self.record_units(scale=scale, max_grad_norm=max_grad_norm)
        assert units is not None
        return math.ceil(units * _ROUNDING) + math.isqrt(dimension - 1) + 1

    def to_grid(self, vectors: Vector, plan: Plan) -> IntVector:
        """Project into the ball of the clipping norm, truncate once: the sensitivity to one record stays."""
        return truncate(clip_by_l2_norm(vectors, plan.clipping_norm), 2**plan.scale_bits, overwrite=True)


class RecordDistributed(_RecordMode):
    """Each client sends the sum of its clipped per-record gradients and its share of the noise."""

    __slots__ = ()
    name, code, noise_by = "record-distributed", 1, "shares"
    local_work = "record-sum"
    required = _ACCOUNTED | _RECORDS | _SUMMED
    description = "discrete Gaussian on one sum of clipped per-record gradients a round, in one share a client"

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

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        return _against_shares(max_colluders, masking)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        return (ONE_SITE.text, *_assumed_of_shares(masking))


class RecordLocal(_RecordMode):
    """Each client runs DP-SGD steps with the full noise and sends the update."""

    __slots__ = ()
    name, code, noise_by = "record-local", 2, "clients"
    local_work = "private-steps"
    required = _ACCOUNTED | _RECORDS | {"training.local_steps"}
    description = "discrete Gaussian on every clipped gradient sum of every client (DP-SGD)"

    def record_units(self, *, scale: int, max_grad_norm: Fraction | None) -> Fraction | None:
        """2^18: a step's sum lies on its own grid (docs/privacy-model.md)."""
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

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ("the server", "all other participants together", _MODELS_ONLY)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return (ONE_SITE.text, SYSTEM_ENTROPY.text)


class ClientDistributed(Mechanism):
    """Each client sends its clipped model update and its share of the noise."""

    __slots__ = ()
    name, code, noise_by = "client-distributed", 3, "shares"
    privacy_unit, local_work = PrivacyUnit.CLIENT, "update"
    required = _ACCOUNTED | _SUMMED | _LOCAL_SGD
    description = "discrete Gaussian on one sum of clipped client updates a round, in one share a client"

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        return _against_shares(max_colluders, masking)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        return _assumed_of_shares(masking)


class ClientCentral(Mechanism):
    """Each client sends its clipped model update; the server adds the noise to the sum, as it promised."""

    __slots__ = ()
    name, code, noise_by = "client-central", 4, "server"
    privacy_unit, local_work = PrivacyUnit.CLIENT, "update"
    required = _ACCOUNTED | _LOCAL_SGD
    description = "discrete Gaussian that the server adds to the sum of clipped client updates"

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ("other participants", _MODELS_ONLY)

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return (TRUSTED_SERVER.text, SYSTEM_ENTROPY.text)


class NoPrivacy(Mechanism):
    """Clipped updates without noise, for comparison. NOT PRIVATE."""

    __slots__ = ()
    name, code, noise_by = "none", 0, "nobody"
    privacy_unit, local_work = None, "update"
    required = _LOCAL_SGD
    description = "none"

    def holds_against(self, *, max_colluders: int | None, masking: bool) -> tuple[str, ...]:
        del max_colluders, masking
        return ()

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        del masking
        return ()


MECHANISMS: Mapping[str, Mechanism] = {
    "record-distributed": RecordDistributed(),
    "record-local": RecordLocal(),
    "client-distributed": ClientDistributed(),
    "client-central": ClientCentral(),
    "none": NoPrivacy(),
}


def _against_shares(max_colluders: int | None, masking: bool) -> tuple[str, ...]:
    many = max_colluders != 1
    others = f"up to {max_colluders} other participants together" if many else "any one other participant"
    if not masking:  # the server sees every vector with one share of the noise: epsilon_if_masking_fails
        return (others, _MODELS_ONLY)
    return (f"the server and up to {max_colluders} roster member{'s' if many else ''}", others, _MODELS_ONLY)


def _assumed_of_shares(masking: bool) -> tuple[str, ...]:
    return (HONEST_SHARES.text, (COMPUTATIONAL if masking else UNMASKED).text, SYSTEM_ENTROPY.text)
