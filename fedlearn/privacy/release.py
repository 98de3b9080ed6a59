"""What one release of a run is to the accountant, and what is then guaranteed: from public keys and the noise alone.

The plan derives these when it chooses the noise; who checks a finished run derives them again from what was drawn.
"""

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from fedlearn.privacy.accounting import Event, epsilon_of, estimate_epsilon, eta_of
from fedlearn.privacy.assumptions import SECRET_COHORTS
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.privacy.noise_multiplier import z_booked_millionths
from fedlearn.privacy.request import PrivacyRequest

__all__ = [
    "Releases",
    "clip_bound_of",
    "most_releases",
    "participations",
    "probability_of",
    "recounted",
    "releases_of",
    "sensitivity_of",
    "shares_of",
    "stated_guarantees",
]

_ACCOUNTANT = "RDP (dp-accounting's RdpAccountant, default orders)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """One release in three views; they differ in what is known of the coins and of the other clients' noise.

    `event` is what the first guarantee counts, `ledger_event` what a client's own ledger counts (another one where
    cohorts are secret coins), `event_of_single_vector` a vector seen alone, where the noise of a sum comes in shares.
    """

    event: Event
    ledger_event: Event
    event_of_single_vector: Event | None


def shares_of(request: PrivacyRequest) -> int:
    """How many shares of noise a sum is sure to hold: h, or 1 where one party adds all."""
    return _mechanism(request).noise.certain_shares(
        min_survivors=request.min_survivors, max_colluders=request.max_colluders or 0
    )


def clip_bound_of(request: PrivacyRequest, scale_bits: int) -> int:
    """floor(2^scale_bits * clipping_norm), in grid units."""
    return math.floor((1 << scale_bits) * Fraction(repr(request.clipping_norm)))


def sensitivity_of(request: PrivacyRequest, scale_bits: int) -> int:
    """How far one unit moves what is released, in grid units of 1 / 2^scale_bits (record-local: of its own grid)."""
    norm = None if request.max_grad_norm is None else Fraction(repr(request.max_grad_norm))
    return _mechanism(request).work.sensitivity(
        clip_bound=clip_bound_of(request, scale_bits),
        scale=2**scale_bits,
        max_grad_norm=norm,
        dimension=request.dimension,
    )


def probability_of(request: PrivacyRequest) -> Fraction:
    """The amplification that the first guarantee books: of record coins, or of a Poisson cohort."""
    if request.cohorts == "poisson":
        return Fraction(request.planned_cohort, request.population_size)
    return (request.sampling_probability or Fraction(1)) if _mechanism(request).samples_records else Fraction(1)


def most_releases(request: PrivacyRequest) -> int:
    """A: what one client can take part in."""
    return min(request.attempts, request.max_participations or request.attempts)


def participations(attempts: int, *, planned_cohort: int, population_size: int, cohorts: str) -> int:
    """The most releases that one client can have made after so many attempts that asked for a vector."""
    return attempts if cohorts == "poisson" else -(-attempts * planned_cohort // population_size)


def releases_of(request: PrivacyRequest, noise_std: int) -> Releases:
    """The events of one release whose noise was drawn with standard deviation `noise_std`, in grid units."""
    shares, sensitivity = shares_of(request), sensitivity_of(request, request.scale_bits)

    def event(of_shares: int) -> Event:
        return Event(
            count=_mechanism(request).work.sums_in_release(request.local_steps),
            eta=eta_of(probability_of(request), dimension=request.dimension, noise_variance=of_shares * noise_std**2),
            noise_multiplier_millionths=z_booked_millionths(noise_std, shares=of_shares, sensitivity=sensitivity),
            sampling_probability=probability_of(request),
        )

    booked = event(shares)
    unsampled = replace(booked, eta=Decimal(0), sampling_probability=Fraction(1))
    return Releases(
        event=booked,
        ledger_event=unsampled if request.cohorts == "poisson" else booked,
        event_of_single_vector=event(1) if _mechanism(request).noise.in_shares else None,
    )


def stated_guarantees(request: PrivacyRequest, *, masked: bool) -> tuple[Guarantee, ...]:
    """What a private run guarantees in words, the one of `target_epsilon` first; every epsilon is still to be counted.

    `masked`: whether vectors were summed under masks, without which the server is not among those it holds against.
    """
    mechanism = _mechanism(request)
    assert request.delta is not None
    assert mechanism.privacy_unit is not None
    assert mechanism.neighboring_relation is not None
    by_participation = Guarantee(
        epsilon=math.inf,
        delta=request.delta,
        privacy_unit=mechanism.privacy_unit,
        neighboring_relation=mechanism.neighboring_relation,
        holds_against=mechanism.noise.holds_against(max_colluders=request.max_colluders, masking=masked),
        mechanism=mechanism.description,
        accountant=_ACCOUNTANT,
        assumptions=mechanism.assumptions(masking=masked),
        epsilon_estimate=None,
        epsilon_if_masking_fails=None,
    )
    return (_amplified(by_participation), by_participation) if request.cohorts == "poisson" else (by_participation,)


def recounted(
    guarantee: Guarantee, event: Event, lone: Event | None, *, releases: int, ceiling: float, estimated: bool = True
) -> Guarantee:
    """The guarantee after so many releases of `event`; `ceiling` is the run's `target_epsilon`.

    `lone` is the same release seen alone. `estimated` says whether the tighter figure is worked out too, which takes a
    second where something is sampled.
    """
    delta, relation = guarantee.delta, guarantee.neighboring_relation
    return replace(
        guarantee,
        epsilon=epsilon_of([(event, releases)], delta=delta, epsilon_ceiling=ceiling),
        epsilon_estimate=estimate_epsilon([(event, releases)], delta=delta, relation=relation) if estimated else None,
        epsilon_if_masking_fails=epsilon_of([(lone, releases)], delta=delta, epsilon_ceiling=ceiling) if lone else None,
    )


def _amplified(guarantee: Guarantee) -> Guarantee:
    """What a Poisson cohort adds, against those to whom its coins are secret (docs/specification/privacy.md 6.2)."""
    return replace(
        guarantee,
        holds_against=("those who see only the models",),
        mechanism=guarantee.mechanism + ", Poisson cohorts",
        assumptions=(SECRET_COHORTS.text, *guarantee.assumptions),
    )


def _mechanism(request: PrivacyRequest) -> Mechanism:
    return MECHANISMS[request.mode]
