"""`audit membership`: can somebody who sees the trained model tell whether a record was in its training data?

The attack is LiRA (Carlini et al. 2022, arXiv:2112.03570): shadow models with and without a record show how each kind
judges it, and the likelihood ratio of the two judges a further model. Every model takes its turn as the one attacked.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.bounds import at_least, at_most
from fedlearn.audit.outcome import CONTROL_FAILED, Audit
from fedlearn.audit.parties import MakeParties, Parties
from fedlearn.audit.setting import private_mechanism
from fedlearn.audit.shadows import Shadows, subject_of
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.rounds import releases_booked
from fedlearn.errors import ConfigError
from fedlearn.privacy.calibration import epsilon_after
from fedlearn.privacy.guarantee import PrivacyUnit

__all__ = ["MODELS", "MembershipAudit", "Rate", "audit_membership"]

MODELS = 40

_FALSE_POSITIVE_RATES = (1e-3, 1e-2)
_CONFIDENCE = 0.999
_FAILURE = (1 - _CONFIDENCE) / (2 * len(_FALSE_POSITIVE_RATES))  # of one bound: a true and a false rate at each point
_FEWEST_MODELS = 8
# Noise costs 0.4 ms and 0.45 us an entry; the models' noise may cost so many seconds, with this many models at least.
_NOISE_SECONDS, _SLOW_MODELS = 30.0, 16
_CLEARLY = 3.0  # the control finds so many times as many members as it takes others for members

_Scores = NDArray[np.float64]  # (models, canaries)
_Members = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rate:
    """The attack at one false-positive rate. `ceiling` is e^epsilon * rate + delta, what the guarantee allows.

    `at_least` and `false_positives_at_most` hold together with the audit's confidence.
    """

    false_positive_rate: float
    true_positive_rate: float
    ceiling: float
    control_true_positive_rate: float
    at_least: float
    false_positives_at_most: float


@dataclass(frozen=True, slots=True)
class MembershipAudit(Audit):
    """How many members were found, with privacy and without, beside what the guarantee allows.

    An honest run fails with a probability of at most `false_alarm_rate`.
    """

    mode: str
    rates: tuple[Rate, ...]
    epsilon_claimed: float
    delta: float
    confidence: float
    false_alarm_rate: float
    control_passed: bool
    passed: bool
    models: int
    canaries: int
    samples: int
    records: int
    rounds: int

    @property
    def failure(self) -> str | None:
        """Why it does not pass."""
        if not self.control_passed:
            return f"{CONTROL_FAILED}: members were not found there either"
        return None if self.passed else "more members were found than the guarantee allows"

    def as_dict(self) -> dict[str, Any]:
        """Every field."""
        return {"kind": "membership", **asdict(self), "rates": [asdict(rate) for rate in self.rates]}


def audit_membership(
    config: RunConfig,
    *,
    models: int = MODELS,
    parties: MakeParties = Parties,
    progress: Callable[[int, int], None] | None = None,
) -> MembershipAudit:
    """Train shadow models of the run `config`, with privacy and without, and look for mislabeled records in them.

    A large model gets fewer than `models`. `progress` is called with models trained and to be trained. `parties` are
    honest but in a test of the audit itself.

    Guarantees:
        an audit whose control does not succeed does not pass.

    Raises:
        ConfigError: the run does not protect records, cannot be planned, or there are too few models.
    """
    if private_mechanism(config).privacy_unit is not PrivacyUnit.RECORD:
        raise ConfigError(
            f'privacy.mode is "{config.privacy.mode}", which protects whole clients; expected a mode that protects '
            "records, for those are what this attack looks for"
        )
    if models < _FEWEST_MODELS:
        raise ConfigError(f"models is {models}; expected at least {_FEWEST_MODELS}")
    subject = subject_of(config)
    private, control = Shadows(subject, parties), Shadows(subject.without_privacy(), Parties)
    count = min(models, _affordable(private.plan.dimension, subject.config))
    tell = progress or (lambda _, __: None)
    private_trials = _trials(private, count, lambda done: tell(done, 2 * count))
    control_trials = _trials(control, count, lambda done: tell(count + done, 2 * count))
    booked = releases_booked(subject.config, subject.population_size, subject.config.run.rounds)
    epsilon, delta = epsilon_after(private.plan, booked), subject.config.privacy.delta
    assert epsilon is not None
    assert delta is not None
    found = [_found(*private_trials, rate) for rate in _FALSE_POSITIVE_RATES]
    found_without = [_found(*control_trials, rate) for rate in _FALSE_POSITIVE_RATES]
    rates = tuple(
        Rate(
            false_positive_rate=rate,
            true_positive_rate=true.share,
            ceiling=min(1.0, math.exp(epsilon) * rate + delta),
            control_true_positive_rate=without[0].share,
            at_least=true.at_least,
            false_positives_at_most=false.at_most,
        )
        for rate, (true, false), without in zip(_FALSE_POSITIVE_RATES, found, found_without, strict=True)
    )
    control_passed = any(true.at_least > _CLEARLY * false.at_most for true, false in found_without)
    within = all(rate.at_least <= math.exp(epsilon) * rate.false_positives_at_most + delta for rate in rates)
    return MembershipAudit(
        mode=config.privacy.mode,
        rates=rates,
        epsilon_claimed=epsilon,
        delta=delta,
        confidence=_CONFIDENCE,
        false_alarm_rate=round(1 - _CONFIDENCE, 12),
        control_passed=control_passed,
        passed=control_passed and within,
        models=count,
        canaries=len(subject.canaries),
        samples=count * len(subject.canaries),
        records=len(subject.records),
        rounds=subject.config.run.rounds,
    )


def _affordable(dimension: int, config: RunConfig) -> int:
    """How many models' noise can be drawn in reasonable time."""
    vectors = config.run.rounds * config.secure_aggregation.planned_cohort
    return max(_SLOW_MODELS, int(_NOISE_SECONDS / (vectors * (4e-4 + 4.5e-7 * dimension))))


def _trials(shadows: Shadows, count: int, progress: Callable[[int], None]) -> tuple[_Members, _Scores]:
    """Who was a member, and the likelihood ratio for it, of each canary in each model."""
    members, odds = [], []
    for trained, (chosen, judged) in enumerate(shadows.train(count), start=1):
        members.append(chosen)
        odds.append(judged)
        progress(trained)
    return np.array(members), _likelihood_ratios(np.array(members), np.array(odds))


def _likelihood_ratios(members: _Members, odds: _Scores) -> _Scores:
    """Of each model's log-odds under normal laws fitted to all other models: means a canary and side, one variance."""
    scores = np.zeros(odds.shape)
    for model in range(len(odds)):
        others = np.arange(len(odds)) != model
        inside, outside = (_mean_of(odds[others], side) for side in (members[others], ~members[others]))
        spread = odds[others] - np.where(members[others], inside, outside)
        variance = spread.var(axis=0) + 1e-12
        scores[model] = ((odds[model] - outside) ** 2 - (odds[model] - inside) ** 2) / (2 * variance)
    return scores


def _mean_of(odds: _Scores, side: _Members) -> _Scores:
    mean: _Scores = np.where(side, odds, 0.0).sum(axis=0) / np.maximum(1, side.sum(axis=0))
    return mean


@dataclass(frozen=True, slots=True)
class _Share:
    """So many of so many, and what that proves of the rate behind it, each bound wrong with `_FAILURE`."""

    events: int
    trials: int

    @property
    def share(self) -> float:
        return self.events / max(1, self.trials)

    @property
    def at_least(self) -> float:
        return at_least(self.events, self.trials, failure=_FAILURE)

    @property
    def at_most(self) -> float:
        return at_most(self.events, self.trials, failure=_FAILURE)


def _found(members: _Members, scores: _Scores, rate: float) -> tuple[_Share, _Share]:
    """Members found, and others taken for members, in every other model, at the threshold of `rate` in the rest."""
    first, second = slice(0, None, 2), slice(1, None, 2)
    others = np.sort(scores[first][~members[first]])[::-1]
    threshold = others[int(rate * len(others))]
    above, inside = scores[second] > threshold, members[second]
    true = _Share(int((above & inside).sum()), int(inside.sum()))
    return true, _Share(int((above & ~inside).sum()), int((~inside).sum()))
