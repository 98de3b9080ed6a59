"""One derivation for all parties: from the public keys of a run to noise, divisors, guarantee, or a refusal."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache

from fedlearn.privacy.accounting import (
    Event,
    best_order,
    best_orders_around,
    delta_for_rdp,
    epsilon_of,
)
from fedlearn.privacy.discrete_gaussian import LARGEST_NOISE_STD
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.privacy.noise_multiplier import least_integer, least_noise_std, z_booked_millionths
from fedlearn.privacy.plan import Plan
from fedlearn.privacy.refusals import (
    LARGEST_SCALE_BITS,
    check_request,
    fits_lanes,
    noise_to_signal,
    refuse_if,
    warnings_of,
)
from fedlearn.privacy.release import (
    clip_bound_of,
    most_releases,
    probability_of,
    recounted,
    releases_of,
    sensitivity_of,
    shares_of,
    stated_guarantees,
)
from fedlearn.privacy.request import PrivacyRequest, threshold_of

__all__ = ["Plan", "check_noise", "epsilon_after", "guarantees_after", "plan"]

SMALLEST_NOISE_STD = 64

_LANE_BYTES = 4
# Cheap orders that find the neighborhood of the least multiplier before all orders are asked.
_SCOUTING_ORDERS = (1.8, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 25.0, 32.0, 45.0, 63.0, 128.0)


@cache
def plan(request: PrivacyRequest) -> Plan:
    """Everything that follows from a run's public keys (docs/specification/privacy.md 1.2). Pure, and cached.

    Takes 20 ms where every record is taken, up to about 2 s where records or cohorts are sampled.

    Guarantees:
        `guarantee.epsilon` <= `target_epsilon` for `releases` releases of which every sum holds `honest_survivors`
        shares of noise;
        the noise multiplier is the least thousandth that does;
        a run whose integers could wrap, whose noise could fall short or whose delta is meaningless is refused.

    Raises:
        ConfigError: one sentence for the first thing that is wrong.
    """
    check_request(request)
    mechanism = MECHANISMS[request.mode]
    thousandths = _least_thousandths(request, mechanism)
    bare = _without_guarantees(request, mechanism, thousandths)
    planned = bare if bare.event is None else _with_guarantees(bare, request, mechanism)
    return replace(planned, warnings=warnings_of(planned, request, mechanism))


def epsilon_after(plan: Plan, releases: int) -> float | None:
    """Epsilon of `plan.guarantee` once one client has made `releases` releases (for a Poisson cohort: attempts)."""
    if plan.event is None or plan.guarantee is None or plan.target_epsilon is None:
        return None
    return epsilon_of([(plan.event, releases)], delta=plan.guarantee.delta, epsilon_ceiling=plan.target_epsilon)


def guarantees_after(plan: Plan, releases: int) -> tuple[Guarantee, ...]:
    """The guarantees of a run that booked `releases` releases, aborted ones included: `plan.guarantees` recomputed."""
    if plan.guarantee is None or plan.event is None or plan.ledger_event is None:
        return ()
    assert plan.target_epsilon is not None
    stated = [(plan.guarantee, plan.event), *((further, plan.ledger_event) for further in plan.further_guarantees)]
    return tuple(
        recounted(guarantee, event, plan.event_of_single_vector, releases=releases, ceiling=plan.target_epsilon)
        for guarantee, event in stated
    )


def check_noise(request: PrivacyRequest, noise_std: int) -> None:
    """Refuse a standard deviation that is not the one that `plan` derives; at most two accountings, no search.

    Raises:
        ConfigError: the run is refused, or its noise is another one.
    """
    check_request(request)
    mechanism = MECHANISMS[request.mode]
    if not mechanism.private:
        refuse_if(noise_std != 0, f"the noise is {noise_std} grid units; mode none adds none")
        return
    shares, sensitivity = shares_of(request), sensitivity_of(request, request.scale_bits)
    refuse_if(
        not SMALLEST_NOISE_STD <= noise_std <= LARGEST_NOISE_STD,
        f"the noise is {noise_std} grid units; expected {SMALLEST_NOISE_STD} to {LARGEST_NOISE_STD}",
    )

    def std_of(thousandths: int) -> int:
        return least_noise_std(thousandths, shares=shares, sensitivity=sensitivity)

    # All multipliers that lead to this one standard deviation: the least that does the job must be among them.
    lowest = least_integer(lambda k: std_of(k) >= noise_std, 1000)
    highest = least_integer(lambda k: std_of(k) > noise_std, lowest) - 1
    passes = _passes(request)
    derived = std_of(lowest) == noise_std and passes(highest) and not (lowest > 1 and passes(lowest - 1))
    refuse_if(
        not derived, f"the noise is {noise_std} grid units; that is not what the configuration and population give"
    )
    _check_noise(request, mechanism, noise_std, _largest_scale_bits(request, mechanism, lowest))


def _least_thousandths(request: PrivacyRequest, mechanism: Mechanism) -> int:
    """The least noise multiplier in thousandths that keeps A releases within the target; 0 without privacy."""
    if not mechanism.private:
        return 0
    passes = _passes(request)
    start = 1000
    if probability_of(request) < 1:  # all orders cost .1 s: scout with a few, then ask all whether one less would do
        assert request.delta is not None
        assert request.target_epsilon is not None
        start = least_integer(lambda k: passes(k, _SCOUTING_ORDERS), 1000)
        near = best_orders_around(
            _planned_events(request, start), delta=request.delta, epsilon_ceiling=request.target_epsilon
        )
        start = least_integer(lambda k: passes(k, near), start)
    return least_integer(passes, start)


def _passes(request: PrivacyRequest) -> Callable[..., bool]:
    """Whether so many thousandths, at these orders or all, keep A releases within the target."""
    delta, target = request.delta, request.target_epsilon
    assert delta is not None
    assert target is not None

    def passes(thousandths: int, orders: tuple[float, ...] | None = None) -> bool:
        events = _planned_events(request, thousandths)
        return epsilon_of(events, delta=delta, epsilon_ceiling=target, orders=orders) <= target

    return passes


def _planned_events(request: PrivacyRequest, thousandths: int) -> list[tuple[Event, int]]:
    """A releases with a noise multiplier of so many thousandths."""
    noise_std = least_noise_std(
        thousandths, shares=shares_of(request), sensitivity=sensitivity_of(request, request.scale_bits)
    )
    booked = releases_of(request, noise_std).event
    return [(replace(booked, noise_multiplier_millionths=1000 * thousandths), most_releases(request))]


def _noise(request: PrivacyRequest, mechanism: Mechanism, thousandths: int, *, scale_bits: int) -> int:
    """The standard deviation that whoever adds the noise draws, in grid units; 0 without privacy."""
    if not mechanism.private:
        return 0
    sensitivity = sensitivity_of(request, scale_bits)
    return least_noise_std(thousandths, shares=shares_of(request), sensitivity=sensitivity)


def _largest_scale_bits(request: PrivacyRequest, mechanism: Mechanism, thousandths: int) -> int | None:
    """The largest scale_bits <= 20 at which the sum fits into lanes and the noise can be drawn."""
    for bits in range(LARGEST_SCALE_BITS, -1, -1):
        noise = _noise(request, mechanism, thousandths, scale_bits=bits)
        if fits_lanes(request, mechanism, scale=2**bits, noise_std=noise) and noise <= LARGEST_NOISE_STD:
            return bits
    return None


def _without_guarantees(request: PrivacyRequest, mechanism: Mechanism, thousandths: int) -> Plan:
    """The plan up to its events, checked."""
    noise = _noise(request, mechanism, thousandths, scale_bits=request.scale_bits)
    largest = _largest_scale_bits(request, mechanism, thousandths)
    _check_noise(request, mechanism, noise, largest)
    assert largest is not None
    shares, sensitivity = shares_of(request), sensitivity_of(request, request.scale_bits)
    multiplier = z_booked_millionths(noise, shares=shares, sensitivity=sensitivity) if mechanism.private else 0
    probability = request.sampling_probability or Fraction(1)
    planned = Plan(
        mode=request.mode,
        dimension=request.dimension,
        scale_bits=request.scale_bits,
        largest_scale_bits=largest,
        clipping_norm=request.clipping_norm,
        clip_bound=clip_bound_of(request, request.scale_bits),
        sensitivity=sensitivity,
        noise_multiplier_millionths=multiplier,
        noise_std=noise,
        divisor=mechanism.work.divisor(
            planned_cohort=request.planned_cohort,
            sampling_probability=probability,
            planned_records=request.planned_records,
        ),
        planned_batch=mechanism.work.planned_batch(
            planned_cohort=request.planned_cohort,
            sampling_probability=probability,
            planned_records=request.planned_records,
        ),
        releases=most_releases(request),
        attempts=request.attempts,
        planned_cohort=request.planned_cohort,
        cohort_probability=Fraction(request.planned_cohort, request.population_size),
        min_survivors=request.min_survivors,
        max_colluders=request.max_colluders,
        honest_survivors=shares,
        threshold=threshold_of(request.planned_cohort),
        target_epsilon=request.target_epsilon if mechanism.private else None,
        event=None,
        ledger_event=None,
        event_of_single_vector=None,
        ledger_order=None,
        guarantee=None,
        further_guarantees=(),
        epsilon_replace_one=None,
        noise_to_signal=0.0,
        bytes_per_round=_LANE_BYTES * request.dimension,
        warnings=(),
    )
    return _with_events(planned, request, noise) if mechanism.private else planned


def _check_noise(request: PrivacyRequest, mechanism: Mechanism, noise: int, largest: int | None) -> None:
    place = f"secure_aggregation.scale_bits is {request.scale_bits}"
    refuse_if(
        mechanism.noise.in_each_vector and noise > LARGEST_NOISE_STD,
        f"the noise of a step would be {noise} grid units; expected less than 2^26: raise target_epsilon, or lower "
        "rounds or local_steps",
    )
    refuse_if(
        largest is None,
        f"{place}, and no smaller one keeps planned_cohort * (2^scale_bits * clipping_norm + 12 * noise_std) below "
        "2^31; lower clipping_norm or planned_cohort, or raise target_epsilon",
    )
    refuse_if(
        largest is not None and request.scale_bits > largest,
        f"{place}; expected at most {largest}: planned_cohort * (2^scale_bits * clipping_norm + 12 * noise_std) must "
        "stay below 2^31, or sums wrap around, and the noise below 2^26; lower scale_bits",
    )
    refuse_if(
        mechanism.private and noise < SMALLEST_NOISE_STD,
        f"{place}, which makes the noise {noise} grid units; expected at least {SMALLEST_NOISE_STD}; raise scale_bits",
    )


def _with_events(planned: Plan, request: PrivacyRequest, noise: int) -> Plan:
    of_release = releases_of(request, noise)
    assert request.delta is not None
    assert request.target_epsilon is not None
    left = delta_for_rdp(
        [(of_release.event, planned.releases)], delta=request.delta, epsilon_ceiling=request.target_epsilon
    )
    refuse_if(
        left < 0.9 * request.delta,
        f"secure_aggregation.scale_bits is {request.scale_bits}; its rounding costs more than a tenth of delta "
        f"{request.delta} over {planned.releases} releases; raise scale_bits",
    )
    return replace(
        planned,
        event=of_release.event,
        ledger_event=of_release.ledger_event,
        event_of_single_vector=of_release.event_of_single_vector,
        ledger_order=best_order(
            [(of_release.ledger_event, planned.releases)], delta=request.delta, epsilon_ceiling=request.target_epsilon
        ),
    )


def _with_guarantees(planned: Plan, request: PrivacyRequest, mechanism: Mechanism) -> Plan:
    """The plan with what it guarantees after A releases."""
    stated = stated_guarantees(request, masked=request.masking)
    named = replace(planned, guarantee=stated[0], further_guarantees=stated[1:])
    counted = guarantees_after(named, planned.releases)
    if not counted[0].epsilon <= (request.target_epsilon or 0):
        raise AssertionError("the noise found costs no more than was asked for")
    return replace(
        named,
        guarantee=counted[0],
        further_guarantees=counted[1:],
        epsilon_replace_one=_epsilon_replace_one(named),
        noise_to_signal=noise_to_signal(named, request, mechanism),
    )


def _epsilon_replace_one(plan: Plan) -> float | None:
    """What exchanging one unit for another costs: twice the sensitivity. Only where nothing is sampled."""
    event = plan.event
    if event is None or plan.guarantee is None or event.sampling_probability < 1:
        return None
    halved = replace(event, noise_multiplier_millionths=event.noise_multiplier_millionths // 2)
    return epsilon_of([(halved, plan.releases)], delta=plan.guarantee.delta, epsilon_ceiling=0.0)
