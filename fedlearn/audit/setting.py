"""The run that an audit attacks: the scenario's parties, bounds and grid, but one release with a noise multiplier of 1.

Against a small epsilon no attack proves anything in a reasonable number of samples, so the noise is what `plan` derives
for a multiplier of 1. A share that is too small is then too small by the same factor as in the run itself.
"""

import math
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

from torch import nn

from fedlearn.audit.records import some_records
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import ConfigError
from fedlearn.model.vector import layout_of
from fedlearn.privacy.accounting import Event, epsilon_of, gaussian_epsilon
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.round.agreement import Agreement, agree, plan_for

__all__ = [
    "NO_PRIVACY",
    "Changes",
    "Setting",
    "agree_on",
    "changed",
    "private_mechanism",
    "setting_of",
    "unclipped_rate",
    "without_privacy",
]

Changes = dict[str, dict[str, object]]

# Mode `none`, for clients of one record.
NO_PRIVACY: Changes = {"privacy": {"mode": "none"}, "training": {"local_steps": 1, "batch_size": 1}}

_ENTRIES = 2  # of the audited model, for one direction
_MULTIPLIER_OF_ONE = Event(count=1, eta=Decimal(0), noise_multiplier_millionths=10**6, sampling_probability=Fraction(1))


@dataclass(frozen=True, slots=True)
class Setting:
    """One release to be attacked, seen by the worst adversary that the mode's guarantee allows.

    Of `honest` clients the adversary knows nothing, of `colluders` everything; `lost` drop out after they were asked
    for a vector. A canary has a direction of its own; in a release half of the directions hold one, half are empty.
    """

    config: RunConfig
    agreement: Agreement = field(repr=False)
    honest: int
    colluders: int
    lost: int
    canaries: int  # in one release
    delta: float
    epsilon_claimed: float  # exact, of the noise multiplier that is booked
    epsilon_booked: float  # the accountant's figure for the same

    @property
    def directions(self) -> int:
        """Directions that are looked at."""
        return 2 * self.canaries


def setting_of(config: RunConfig, *, entropy: Entropy) -> Setting:
    """The release that stands for the run `config`, its plan derived as every client derives it.

    The audited model is one linear layer with as many parameters as the scenario's (where no bound depends on their
    number, with fewer). `entropy` is what local work draws from.

    Raises:
        ConfigError: the run claims no privacy, cannot be planned, or is too small to hold a canary.
    """
    private_mechanism(config)
    single = _single_release(config)
    assert single.privacy.delta is not None
    honest, colluders = _observed(single)
    dimension = _dimension(config)
    canaries = min(_canaries_within_bounds(single, honest), dimension // (2 * _ENTRIES))
    if canaries < 1:
        raise ConfigError(
            f"a canary needs a model of at least {2 * _ENTRIES} parameters and a clipping_norm of at least "
            f"max_grad_norm; this run has {dimension} parameters and a clipping_norm of {config.privacy.clipping_norm}"
        )
    agreement = agree_on(single, _as_small_as_allowed(single, dimension, canaries), entropy)
    assert agreement.plan.guarantee is not None
    return Setting(
        config=single,
        agreement=agreement,
        honest=honest,
        colluders=colluders,
        lost=agreement.plan.planned_cohort - agreement.plan.min_survivors,
        canaries=canaries,
        delta=single.privacy.delta,
        epsilon_claimed=gaussian_epsilon(agreement.plan.noise_multiplier, single.privacy.delta),
        epsilon_booked=agreement.plan.guarantee.epsilon,
    )


def without_privacy(setting: Setting, *, entropy: Entropy) -> Setting:
    """The same release in mode `none`: what the attack must see, or it would see nothing anywhere."""
    config = changed(setting.config, NO_PRIVACY)
    canaries = min(setting.canaries, setting.honest)  # the unit is the client, so one each
    agreement = agree_on(config, 2 * _ENTRIES * canaries, entropy)
    return replace(setting, config=config, agreement=agreement, canaries=canaries)


def _single_release(config: RunConfig) -> RunConfig:
    """One round, every record taken, at the target epsilon whose least multiplier is 1."""
    assert config.privacy.delta is not None
    target = epsilon_of([(_MULTIPLIER_OF_ONE, 1)], delta=config.privacy.delta, epsilon_ceiling=0.0)
    changes: Changes = {
        "run": {"rounds": 1, "spare_rounds": 0},
        "privacy": {"target_epsilon": target, "sampling_probability": "1", "max_participations": 1},
        "secure_aggregation": {"cohorts": "rotation"},
    }
    if MECHANISMS[config.privacy.mode].noise.in_each_vector:
        changes["training"] = {"local_steps": 1, "learning_rate": unclipped_rate(config, _dimension(config))}
    return changed(config, changes)


def unclipped_rate(config: RunConfig, dimension: int) -> float:
    """A rate (it is public) at which a noised step stays well inside the clipping norm, so that entries stay apart."""
    assert config.privacy.max_grad_norm is not None
    assert config.privacy.planned_records is not None
    batch = config.privacy.planned_records / config.secure_aggregation.planned_cohort
    step = config.privacy.max_grad_norm / batch  # of one record, and the noise of one entry at a multiplier of 1
    return config.privacy.clipping_norm / (4 * step * math.sqrt(dimension))


def private_mechanism(config: RunConfig) -> Mechanism:
    """The run's mechanism.

    Raises:
        ConfigError: it claims nothing.
    """
    mechanism = MECHANISMS[config.privacy.mode]
    if not mechanism.private:
        raise ConfigError('privacy.mode is "none", which claims nothing; expected a private mode to audit')
    return mechanism


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """The same run with other values of some keys, given by section.

    Raises:
        ConfigError: they do not go together.
    """
    values = config.model_dump(exclude_none=True)
    for section, entries in changes.items():
        values[section] = values[section] | entries
    return RunConfig.from_values(values, place="the audited release")


def _observed(config: RunConfig) -> tuple[int, int]:
    """How many honest clients are in what the adversary sees, and how many of the others in it work with it."""
    survivors, colluders = config.secure_aggregation.min_survivors, config.secure_aggregation.max_colluders or 0
    noise = MECHANISMS[config.privacy.mode].noise
    if noise.in_shares:
        return survivors - colluders, colluders
    return (1 if noise.in_each_vector else survivors), 0  # the guarantee may hold for each vector alone


def _canaries_within_bounds(config: RunConfig, honest: int) -> int:
    """How many canaries fit: records as long as the norm of a client allows, or one client each."""
    mechanism = MECHANISMS[config.privacy.mode]
    if mechanism.privacy_unit is PrivacyUnit.CLIENT:
        return honest
    if mechanism.noise.in_each_vector:  # each step is noised before the client's norm is bounded
        return 1 << 20
    assert config.privacy.max_grad_norm is not None
    ratio = Fraction(repr(config.privacy.clipping_norm)) / Fraction(repr(config.privacy.max_grad_norm))
    return honest * math.floor(ratio**2)


def _dimension(config: RunConfig) -> int:
    """Parameters of the scenario's own model; one record says which shape it is given."""
    return layout_of(some_records(config, 1).build_model(config)).dimension


def _as_small_as_allowed(config: RunConfig, dimension: int, canaries: int) -> int:
    """The scenario's dimension, or only what the canaries need where noise and sensitivity stay the same."""
    needed = 2 * _ENTRIES * canaries
    whole, small = (_noise(config, entries) for entries in (dimension, needed))
    return needed if whole == small else dimension


def _noise(config: RunConfig, dimension: int) -> tuple[int, ...]:
    planned = plan_for(config, dimension=dimension, population_size=config.secure_aggregation.planned_cohort)
    return planned.sensitivity, planned.noise_std


def agree_on(config: RunConfig, dimension: int, entropy: Entropy) -> Agreement:
    """What every party of an audit derives from a configuration, for the audited model of `dimension` parameters.

    Raises:
        ConfigError: its plan is refused.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(dimension // _ENTRIES, _ENTRIES, bias=False))
    return agree(
        config,
        model,
        population_size=config.secure_aggregation.planned_cohort,
        device="cpu",
        entropy=entropy,
    )
