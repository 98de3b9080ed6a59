"""What a data holder accepts. The coordinator can ask for less, never for more."""

from pydantic import BaseModel, ConfigDict

from fedlearn.config import RunConfig
from fedlearn.errors import RefusedError
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.guarantee import PrivacyUnit

__all__ = ["Policy"]


class Policy(BaseModel):
    """One holder's limits for one data set: they bound the result (guarantee, survivors), never noise or clip alone.

    In a simulation it is derived from the scenario (`for_simulation`) and shown with the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    privacy_unit: PrivacyUnit | None
    max_epsilon: float | None
    max_delta: float | None
    models: tuple[str, ...]
    modes: tuple[str, ...]
    min_survivors: int
    max_colluders_at_least: int
    max_dimension: int

    @classmethod
    def for_simulation(cls, config: RunConfig, plan: Plan) -> "Policy":
        """The policy of a simulated holder: exactly what the scenario states, and nothing beyond it."""
        guarantee = plan.ledger_guarantee
        return cls(
            privacy_unit=guarantee.privacy_unit if guarantee else None,
            max_epsilon=max(guarantee.epsilon, config.privacy.target_epsilon or 0) if guarantee else None,
            max_delta=config.privacy.delta if guarantee else None,
            models=(config.model.name,),
            modes=(config.privacy.mode,),
            min_survivors=config.secure_aggregation.min_survivors,
            max_colluders_at_least=config.secure_aggregation.max_colluders or 0,
            max_dimension=plan.dimension,
        )

    def check(self, config: RunConfig, plan: Plan) -> None:
        """Refuse what this holder does not accept.

        Raises:
            RefusedError: the reason, for the holder's own log; a peer never sees it.
        """
        mode, guarantee = config.privacy.mode, plan.ledger_guarantee
        aggregation = config.secure_aggregation
        if mode not in self.modes:
            raise RefusedError(f'the policy does not name mode "{mode}"; it accepts {", ".join(self.modes)}')
        if config.model.name not in self.models:
            raise RefusedError(f'the policy does not list model "{config.model.name}"')
        if guarantee is not None:
            self._check_guarantee(guarantee.epsilon, guarantee.delta, guarantee.privacy_unit)
        if aggregation.min_survivors < self.min_survivors:
            raise RefusedError(f"min_survivors is {aggregation.min_survivors}; the policy asks {self.min_survivors}")
        if (aggregation.max_colluders or 0) < self.max_colluders_at_least:
            raise RefusedError(f"max_colluders is below the {self.max_colluders_at_least} that the policy asks")
        if plan.dimension > self.max_dimension:
            raise RefusedError(f"a model of {plan.dimension} entries; the policy allows {self.max_dimension}")

    def _check_guarantee(self, epsilon: float, delta: float, unit: PrivacyUnit) -> None:
        if unit is not self.privacy_unit:
            raise RefusedError(f"the data set's budget protects one {self.privacy_unit}; this run protects one {unit}")
        if self.max_epsilon is None or epsilon > self.max_epsilon:
            raise RefusedError(f"epsilon {epsilon:.4f} is above the policy's {self.max_epsilon}")
        if self.max_delta is None or delta > self.max_delta:
            raise RefusedError(f"delta {delta} is above the policy's {self.max_delta}")
