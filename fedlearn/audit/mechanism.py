"""`audit mechanism`: is what leaves as noisy as it is booked, for the worst adversary that the guarantee allows?

What the adversary sees is the sum of the survivors, less the vectors of the colluders among them. The statistic is how
far that goes in the direction of a canary; what it knows besides (the noise of the release before, of a direction
nearby, and a colluder's own vector) it subtracts where that helps, which it does only where noise was not fresh.

Beside it stored records go through the whole engine over many rounds (`engine_attack`), which finds what one release on
the clients' own code does not show.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.bounds import Seen, epsilon_lower
from fedlearn.audit.canaries import Release, along_directions, releases_of
from fedlearn.audit.engine_attack import FALSE_ALARM_RATE, EngineAttack, attack_engine
from fedlearn.audit.masked_rounds import MaskedRounds
from fedlearn.audit.outcome import CONTROL_FAILED, Audit
from fedlearn.audit.parties import MakeParties, Parties
from fedlearn.audit.setting import Setting, setting_of, without_privacy
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import ConfigError
from fedlearn.privacy.clipping import Vector

__all__ = ["CONFIDENCE", "SAMPLES", "MechanismAudit", "audit_mechanism"]

SAMPLES = 200_000
CONFIDENCE = 0.999

_CONTROL_SAMPLES = 2_000
_FEWEST_SAMPLES = 1_000
# A masked round costs 0.07 s at 10 clients and grows with the square of their number.
_MASKED_ROUNDS, _MASKED_PAIRS = 300, 30_000
_MOST_RELEASES = 6_000  # of 7 ms at 10 clients

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MechanismAudit(Audit):
    """What the attack proved beside what is claimed. `samples` are canaries seen, and as many empty directions.

    A mechanism that is as noisy as it says does not pass with a probability of at most `false_alarm_rate`.
    """

    mode: str
    epsilon_lower: float
    epsilon_claimed: float
    epsilon_booked: float
    delta: float
    noise_multiplier: float
    confidence: float
    false_alarm_rate: float
    passed: bool
    control_passed: bool
    control_epsilon_lower: float
    samples: int
    releases: int
    canaries: int
    dimension: int
    planned_cohort: int
    honest: int
    colluders: int
    lost: int
    masked_releases: int
    masked_sums_equal: bool  # secure aggregation gave the sum of the survivors' lanes, bit for bit
    engine_rounds: int  # of each federation; 0 where the engine was left out
    engine_reach: float  # how often its bound the longest canary there was
    engine_checks: tuple[dict[str, Any], ...]  # `name`, `passed`, `found`, `false_alarm_rate`
    engine_failure: str | None

    @property
    def tightness(self) -> float:
        """How much of the claim the attack proved."""
        return self.epsilon_lower / self.epsilon_claimed

    @property
    def failure(self) -> str | None:
        """Why it does not pass."""
        if not self.control_passed:
            return f"{CONTROL_FAILED}: it was not told apart"
        if not self.masked_sums_equal:
            return "secure aggregation gave another sum than that of the survivors' vectors"
        if self.engine_failure:
            return f"what the engine releases is not what is booked: {self.engine_failure}"
        if self.passed:
            return None
        return (
            f"epsilon is at least {self.epsilon_lower:.3f}, and {self.epsilon_claimed:.3f} is claimed: what leaves is "
            "less noisy than booked"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every field."""
        return {"kind": "mechanism", **asdict(self), "engine_checks": list(self.engine_checks)}


def audit_mechanism(
    config: RunConfig,
    *,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
    parties: MakeParties = Parties,
    masked: bool = True,
    engine: bool = True,
    progress: Progress | None = None,
) -> MechanismAudit:
    """Attack one release of the run `config` at a noise multiplier of 1.

    The attack sees `samples` canaries, and as many empty directions; fewer where a release holds so few canaries that
    it would take too long. `masked` false leaves secure aggregation out, whose sums are the same bit for bit.
    `engine` false leaves out the whole engine's rounds. `progress` is called with releases made and to be made.
    `parties` are honest but in a test of the audit itself.

    Guarantees:
        an audit whose control does not succeed, or whose masked and plain sums differ, does not pass.

    Raises:
        ConfigError: the run claims no privacy or cannot be planned, or the samples are too few.
    """
    if samples < _FEWEST_SAMPLES:
        raise ConfigError(f"samples is {samples}; expected at least {_FEWEST_SAMPLES}")
    entropy = stream_entropy()
    setting = setting_of(config, entropy=entropy)
    attack = _Attack(setting, parties(setting.agreement, entropy))
    releases = min(-(-samples // setting.canaries), _MOST_RELEASES)
    rounds = _masked_rounds(setting, releases) if masked else 0
    bound = attack.bound(releases, confidence=confidence, masked=rounds, progress=progress)
    bare = without_privacy(setting, entropy=entropy)
    control = _Attack(bare, Parties(bare.agreement, entropy))
    control_bound = control.bound(-(-_CONTROL_SAMPLES // bare.canaries), confidence=confidence)
    control_passed = control_bound > setting.epsilon_claimed
    whole = attack_engine(config, progress=progress) if engine else None
    control_passed &= whole is None or whole.unprotected
    return MechanismAudit(
        mode=config.privacy.mode,
        epsilon_lower=bound,
        epsilon_claimed=setting.epsilon_claimed,
        epsilon_booked=setting.epsilon_booked,
        delta=setting.delta,
        noise_multiplier=setting.agreement.plan.noise_multiplier,
        confidence=confidence,
        false_alarm_rate=round(1 - confidence + (FALSE_ALARM_RATE if engine else 0.0), 12),
        passed=bound <= setting.epsilon_claimed
        and control_passed
        and attack.sums_equal
        and not (whole and whole.failed),
        control_passed=control_passed,
        control_epsilon_lower=control_bound,
        samples=releases * setting.canaries,
        releases=releases,
        canaries=setting.canaries,
        dimension=setting.agreement.plan.dimension,
        planned_cohort=setting.agreement.plan.planned_cohort,
        honest=setting.honest,
        colluders=setting.colluders,
        lost=setting.lost,
        masked_releases=rounds,
        masked_sums_equal=attack.sums_equal,
        **_of_engine(whole),
    )


def _of_engine(whole: EngineAttack | None) -> dict[str, Any]:
    if whole is None:
        return {"engine_rounds": 0, "engine_reach": 0.0, "engine_checks": (), "engine_failure": None}
    return {
        "engine_rounds": whole.rounds,
        "engine_reach": whole.reach,
        "engine_checks": tuple(check.as_dict() for check in whole.checks),
        "engine_failure": whole.failed,
    }


def _masked_rounds(setting: Setting, releases: int) -> int:
    """How many releases go through secure aggregation: none where the guarantee does not need it, or it is off."""
    if not (setting.config.secure_aggregation.masking and not setting.agreement.mechanism.noise.in_each_vector):
        return 0
    pairs = setting.agreement.plan.planned_cohort**2
    return min(releases, _MASKED_ROUNDS, max(1, _MASKED_PAIRS // pairs))


class _Attack:
    """The adversary, against the parties of one setting."""

    def __init__(self, setting: Setting, parties: Parties) -> None:
        self._setting, self._parties = setting, parties
        self.sums_equal = True

    def bound(self, releases: int, *, confidence: float, masked: int = 0, progress: Progress | None = None) -> float:
        """The epsilon that is proven by `releases` releases, the first `masked` through secure aggregation."""
        turns, cohort = (
            releases_of(self._setting),
            MaskedRounds(self._setting.config, self._setting.agreement) if masked else None,
        )
        noise, colluders = [], []
        for number in range(releases):
            release = turns[number % 2]
            seen, known = self._see(release, cohort if number < masked else None)
            noise.append(along_directions(self._setting, seen) - release.present)
            colluders.append(along_directions(self._setting, known))
            if progress is not None:
                progress(number + 1, releases)
        present, absent = _samples(np.array(noise), np.array(colluders), [turn.present for turn in turns])
        return epsilon_lower(present, absent, delta=self._setting.delta, confidence=confidence)

    def _see(self, release: Release, cohort: MaskedRounds | None) -> tuple[Vector, Vector]:
        """What is released less what the colluders sent, and what the first of them sent, both (d,)."""
        lanes = self._parties.contribute(release.clients)
        total = lanes.sum(axis=0, dtype=np.uint32)
        if cohort is not None:
            unmasked = cohort.sum_of(lanes)
            self.sums_equal &= np.array_equal(unmasked, total)
            total = unmasked
        theirs = lanes[self._setting.honest :]
        seen = self._parties.finish([total, np.negative(theirs.sum(axis=0, dtype=np.uint32))])
        plan, factor = self._setting.agreement.plan, self._setting.agreement.mechanism.work.server_factor(1.0)
        own = theirs[0].astype(np.int32) if len(theirs) else np.zeros(plan.dimension)
        return seen, own * (factor / float(plan.divisor * 2**plan.scale_bits))


def _samples(noise: Vector, colluders: Vector, presents: list[NDArray[np.bool_]]) -> tuple[Seen, Seen]:
    """The two sides, from the noise (r, m) of r releases in m directions, canaries taken off.

    Of all else the adversary knows the contents, so it knows the noise of the release before and of a direction nearby.
    """
    before = np.vstack([np.zeros(noise.shape[1]), noise[:-1]])
    nearby = np.roll(noise, 1, axis=1)
    known = np.stack([before, nearby, colluders], axis=2)
    turn = np.arange(len(noise)) % 2
    present = np.array(presents)[turn]
    group = np.broadcast_to(turn[:, None], noise.shape)
    sides = []
    for side, reach in ((present, 1.0), (~present, 0.0)):
        sides.append(Seen(noise[side] + reach, known[side], group[side]))
    return sides[0], sides[1]
