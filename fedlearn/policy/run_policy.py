"""What a data holder accepts. The coordinator can ask for less, never for more.

`Policy` is what an agent asks: the limits for one data set, from the holder's own file (`holder_policy.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict

from fedlearn.canonical import canonical_json, floats_to_text
from fedlearn.config.run_config import Option, RunConfig
from fedlearn.config.schema import schema_sha256
from fedlearn.errors import RefusedError
from fedlearn.privacy.guarantee import Guarantee, PrivacyUnit, rounded_up
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.plan import Plan

__all__ = ["Policy", "Verdict"]

ModelOptions = Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit: what the policy accepts, what the run has, and whether that is accepted."""

    limit: str
    policy: str
    run: str
    accepted: bool

    @property
    def sentence(self) -> str:
        """Both sides in one sentence."""
        return f"{self.limit} is {self.run}; the policy accepts {self.policy}"


class Policy(BaseModel):
    """One holder's limits for one data set: they bound the result (guarantee, survivors), never noise or clip alone.

    From the holder's file by `HolderPolicy.for_dataset`; in a simulation from the scenario, and shown with the result.

    Guarantees:
        a run that asks for more than any one limit is refused, whatever the others say;
        what cannot be compared (no guarantee, NaN) is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    privacy_unit: PrivacyUnit | None
    max_epsilon: float | None
    max_delta: float | None
    models: tuple[str, ...]
    model_options: Mapping[str, tuple[ModelOptions, ...]]  # beside none at all, which every model may have
    schemas: tuple[str, ...] | None  # SHA-256 of those that a table may be read by; None: the data set has its own
    modes: tuple[str, ...]
    min_survivors: int
    max_colluders_at_least: int
    unconfirmed: int  # roster members whose key this holder compared with nobody
    unconfirmed_members: int  # so many of them are accepted though they are more than max_colluders
    max_dimension: int
    releases_per_model: int | None  # None: a simulation, where one person owns all parties
    unmasked: bool  # vectors may leave in the clear: no file can say so, a simulation alone

    @classmethod
    def for_simulation(cls, config: RunConfig, plan: Plan) -> Self:
        """The policy of a simulated holder: exactly what the scenario states, and nothing beyond it."""
        guarantee = plan.ledger_guarantee
        return cls(
            privacy_unit=guarantee.privacy_unit if guarantee else None,
            max_epsilon=max(guarantee.epsilon, config.privacy.target_epsilon or 0) if guarantee else None,
            max_delta=config.privacy.delta if guarantee else None,
            models=(config.model.name,),
            model_options={config.model.name: (config.model.options,)},
            schemas=None,
            modes=(config.privacy.mode,),
            min_survivors=config.secure_aggregation.min_survivors,
            max_colluders_at_least=config.secure_aggregation.max_colluders or 0,
            unconfirmed=0,
            unconfirmed_members=0,
            max_dimension=plan.dimension,
            releases_per_model=None,
            unmasked=not config.secure_aggregation.masking,
        )

    def judge(self, config: RunConfig, plan: Plan | None = None) -> tuple[Verdict, ...]:
        """What each limit says to a run; without its plan, only the limits that the configuration alone answers."""
        return self._judge_config(config) + (self._judge_plan(plan) if plan else ())

    def check_asked(self, config: RunConfig) -> None:
        """Refuse what the configuration alone shows; to be called before its model is built and its plan derived.

        Raises:
            RefusedError: as `check`.
        """
        _refuse_first(self.judge(config))

    def check(self, config: RunConfig, plan: Plan) -> None:
        """Refuse what this holder does not accept.

        Raises:
            RefusedError: the reason, for the holder's own log; a peer never sees it.
        """
        _refuse_first(self.judge(config, plan))

    def check_attempt(self, attempt: int) -> None:
        """Refuse an attempt (numbered from 0 in each round) beyond `releases_per_model` of one round.

        Numbers only grow in a round, so at most so many vectors leave that were trained from the same start, whatever
        the mode, and over restarts: what two retries of a round with different survivors differ by is somebody's
        vector.

        Raises:
            RefusedError: too many.
        """
        if self.releases_per_model is not None and attempt >= self.releases_per_model:
            raise RefusedError(
                f"attempt {attempt} of a round, counted from 0; the policy has releases_per_model = "
                f"{self.releases_per_model}"
            )

    def _judge_config(self, config: RunConfig) -> tuple[Verdict, ...]:
        mode, aggregation = config.privacy.mode, config.secure_aggregation
        survivors, colluders = aggregation.min_survivors, aggregation.max_colluders or 0
        known = self.unconfirmed <= max(colluders, self.unconfirmed_members)
        masked = aggregation.masking
        return (
            Verdict("mode", _list(self.modes), mode, mode in self.modes),
            Verdict("model", _list(self.models), config.model.name, config.model.name in self.models),
            self._judge_options(config),
            *self._judge_schema(config),
            Verdict(
                "masking", "true or false" if self.unmasked else "true", str(masked).lower(), masked or self.unmasked
            ),
            Verdict("min_survivors", f"at least {self.min_survivors}", f"{survivors}", survivors >= self.min_survivors),
            Verdict(
                "max_colluders",
                f"at least {self.max_colluders_at_least}",
                f"{colluders}",
                colluders >= self.max_colluders_at_least,
            ),
            Verdict(
                "unconfirmed members",
                f"at most max_colluders = {colluders}, or unconfirmed_members = {self.unconfirmed_members}",
                f"{self.unconfirmed}",
                known,
            ),
        )

    def _judge_options(self, config: RunConfig) -> Verdict:
        asked = config.model.options
        known = self.model_options.get(config.model.name, ())
        accepted = " or ".join(_text(options) for options in ({}, *known))
        # As canonical bytes, in which 1, 1.0 and true differ.
        fits = not asked or any(_bytes(options) == _bytes(asked) for options in known)
        return Verdict("model options", accepted, _text(asked), fits)

    def _judge_schema(self, config: RunConfig) -> tuple[Verdict, ...]:
        if self.schemas is None:
            return ()
        digest = schema_sha256(config.data)
        pinned = ", ".join(self.schemas) or "none before it was shown: fedlearn client policy accept-schema RUN"
        return (Verdict("schema", pinned, digest, digest in self.schemas),)

    def _judge_plan(self, plan: Plan) -> tuple[Verdict, ...]:
        size = Verdict(
            "model size",
            f"at most {self.max_dimension}",
            f"{plan.dimension} entries",
            plan.dimension <= self.max_dimension,
        )
        return (*self._judge_guarantee(plan.ledger_guarantee, plan.mode), size)

    def _judge_guarantee(self, guarantee: Guarantee | None, mode: str) -> tuple[Verdict, ...]:
        if guarantee is None:
            named = not MECHANISMS[mode].private and mode in self.modes
            return (Verdict("guarantee", "no guarantee where it names mode none", "none: NOT PRIVATE", named),)
        most, most_delta = self.max_epsilon, self.max_delta
        return (
            Verdict(
                "privacy_unit",
                f"{self.privacy_unit}",
                guarantee.privacy_unit,
                guarantee.privacy_unit is self.privacy_unit,
            ),
            Verdict(
                "epsilon",
                f"at most {most}",
                f"{rounded_up(guarantee.epsilon, 4)}",
                most is not None and guarantee.epsilon <= most,
            ),
            Verdict(
                "delta",
                f"at most {most_delta}",
                f"{guarantee.delta}",
                most_delta is not None and guarantee.delta <= most_delta,
            ),
        )


def _text(options: ModelOptions) -> str:
    return ", ".join(f"{key} = {value}" for key, value in sorted(options.items())) or "none"


def _bytes(options: ModelOptions) -> bytes:
    return canonical_json(floats_to_text({"model": {"options": dict(options)}}))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _refuse_first(verdicts: tuple[Verdict, ...]) -> None:
    for verdict in verdicts:
        if not verdict.accepted:
            raise RefusedError(verdict.sentence)
