"""What a run asks of privacy: its public keys, once for plan, refusals, certificate and audit."""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from fedlearn.config.run_config import RunConfig

__all__ = ["PrivacyRequest", "threshold_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyRequest:
    """The public keys of a run that its privacy depends on; None for a key that the mode does not use.

    `dimension` is the number of the model's parameters; a key that the mode does not use may be anything valid.
    """

    mode: str
    target_epsilon: float | None
    delta: float | None
    rounds: int
    spare_rounds: int
    max_grad_norm: float | None
    clipping_norm: float
    sampling_probability: Fraction | None
    local_steps: int | None
    planned_records: int | None
    population_size: int
    planned_cohort: int
    min_survivors: int
    max_colluders: int | None
    max_participations: int | None
    scale_bits: int
    dimension: int
    cohorts: str
    masking: bool

    @classmethod
    def of(cls, config: "RunConfig", *, population_size: int, dimension: int) -> Self:
        """What `config` asks for, with a model of so many parameters, of so many clients."""
        privacy, aggregation = config.privacy, config.secure_aggregation
        return cls(
            mode=privacy.mode,
            target_epsilon=privacy.target_epsilon,
            delta=privacy.delta,
            rounds=config.run.rounds,
            spare_rounds=config.run.spare_rounds,
            max_grad_norm=privacy.max_grad_norm,
            clipping_norm=privacy.clipping_norm,
            sampling_probability=config.sampling_probability,
            local_steps=config.training.local_steps,
            planned_records=privacy.planned_records,
            population_size=population_size,
            planned_cohort=aggregation.planned_cohort,
            min_survivors=aggregation.min_survivors,
            max_colluders=aggregation.max_colluders,
            max_participations=privacy.max_participations,
            scale_bits=aggregation.scale_bits,
            dimension=dimension,
            cohorts=aggregation.cohorts,
            masking=aggregation.masking,
        )

    @property
    def attempts(self) -> int:
        """Rounds and spare rounds: how often anybody can be asked."""
        return self.rounds + self.spare_rounds


def threshold_of(planned_cohort: int) -> int:
    """Shares needed to unmask."""
    return 2 * planned_cohort // 3 + 1
