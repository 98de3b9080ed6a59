"""What a run may not ask for, and what it is warned of.

A refusal is one sentence: where, what came, what was expected, what to do.
"""

import math
from fractions import Fraction

from fedlearn.errors import ConfigError
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.mechanisms import MECHANISMS, Mechanism
from fedlearn.privacy.plan import Plan
from fedlearn.privacy.request import PrivacyRequest, threshold_of

__all__ = [
    "LARGEST_SCALE_BITS",
    "check_request",
    "fits_lanes",
    "largest_cohort",
    "noise_to_signal",
    "refuse_if",
    "warnings_of",
]

LARGEST_SCALE_BITS = 20
_LARGEST_MASKED_COHORT = 256
_LARGEST_FRACTION_PART = 2**32


def check_request(request: PrivacyRequest) -> None:
    """Refuse what needs no noise to be refused.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    refuse_if(
        request.mode not in MECHANISMS, f'privacy.mode is "{request.mode}"; expected one of {", ".join(MECHANISMS)}'
    )
    mechanism = MECHANISMS[request.mode]
    _check_presence(request, mechanism)
    _check_ranges(request)
    _check_cohort(request, mechanism)
    _check_participations(request)
    _check_delta(request, mechanism)
    _check_grid(request, mechanism)


def refuse_if(wrong: bool, sentence: str) -> None:
    """Raise ConfigError with `sentence` if `wrong`."""
    if wrong:
        raise ConfigError(sentence)


def largest_cohort(request: PrivacyRequest) -> int:
    """How many clients a sum can hold; for a Poisson cohort, a size passed with probability below e^-10."""
    if request.cohorts == "rotation":
        return request.planned_cohort
    return min(request.population_size, 2 * request.planned_cohort + 32)


def fits_lanes(request: PrivacyRequest, mechanism: Mechanism, *, scale: int, noise_std: int) -> bool:
    """Whether an entry of the sum stays below 2^31, at 12 standard deviations of each party's noise on its grid."""
    vector = scale * Fraction(repr(request.clipping_norm))
    of_client = noise_std if mechanism.noise.in_shares else 0
    of_server = noise_std if mechanism.noise.at_server else 0
    return largest_cohort(request) * (vector + 12 * of_client) + 12 * of_server < 2**31


def _check_presence(request: PrivacyRequest, mechanism: Mechanism) -> None:
    for key in sorted(mechanism.required | ({"secure_aggregation.max_colluders"} if request.masking else set())):
        field = key.partition(".")[2]
        if key.startswith("training.") and not mechanism.noise.in_each_vector:
            continue  # the work needs it, the noise does not
        if field in PrivacyRequest.__slots__ and getattr(request, field) is None:
            raise ConfigError(f'{key} is missing; mode "{request.mode}" needs it, so state it')


def _check_ranges(request: PrivacyRequest) -> None:
    for key, value, least in (
        ("run.rounds", request.rounds, 1),
        ("run.spare_rounds", request.spare_rounds, 0),
        ("training.local_steps", request.local_steps, 1),
        ("privacy.planned_records", request.planned_records, 1),
        ("privacy.max_participations", request.max_participations, 1),
        ("data.population_size", request.population_size, 1),
        ("secure_aggregation.planned_cohort", request.planned_cohort, 1),
        ("secure_aggregation.min_survivors", request.min_survivors, 1),
        ("secure_aggregation.max_colluders", request.max_colluders, 0),
        ("the number of the model's parameters", request.dimension, 1),
    ):
        refuse_if(value is not None and value < least, f"{key} is {value}; expected an integer of at least {least}")
    for key, number in (
        ("privacy.target_epsilon", request.target_epsilon),
        ("privacy.max_grad_norm", request.max_grad_norm),
        ("privacy.clipping_norm", request.clipping_norm),
    ):
        wrong = number is not None and not (math.isfinite(number) and number > 0)
        refuse_if(wrong, f"{key} is {number}; expected a finite number above 0")
    refuse_if(
        not 0 <= request.scale_bits <= LARGEST_SCALE_BITS,
        f"secure_aggregation.scale_bits is {request.scale_bits}; expected 0 to {LARGEST_SCALE_BITS}",
    )
    probability = request.sampling_probability
    refuse_if(
        probability is not None and not (0 < probability <= 1 and probability.denominator < _LARGEST_FRACTION_PART),
        f"privacy.sampling_probability is {probability}; expected a fraction above 0 and at most 1 with both parts "
        "below 2^32",
    )


def _check_cohort(request: PrivacyRequest, mechanism: Mechanism) -> None:
    size, survivors, colluders = request.planned_cohort, request.min_survivors, request.max_colluders or 0
    place = "secure_aggregation"
    refuse_if(
        size > request.population_size,
        f"{place}.planned_cohort is {size}; expected at most the population, {request.population_size} clients",
    )
    refuse_if(
        survivors > size,
        f"{place}.min_survivors is {survivors}; expected at most planned_cohort, {size}: no more are asked",
    )
    _check_cohort_kind(request, mechanism)
    refuse_if(
        request.masking and not 3 <= size <= _LARGEST_MASKED_COHORT,
        f"{place}.planned_cohort is {size}; expected 3 to {_LARGEST_MASKED_COHORT} with masking: every client agrees "
        "on a mask with every other; take a smaller cohort that rotates",
    )
    if not (mechanism.noise.in_shares or request.masking):
        return
    refuse_if(
        mechanism.noise.in_shares and colluders < 1,
        f"{place}.max_colluders is {colluders}; expected at least 1: each participant knows its own share of the noise "
        "and sees every model",
    )
    threshold = threshold_of(size)
    refuse_if(
        survivors < threshold,
        f"{place}.min_survivors is {survivors}; expected at least floor(2*planned_cohort/3) + 1 = {threshold}, or a "
        "server could unmask two different sums of one round",
    )
    refuse_if(
        colluders > 2 * threshold - size - 1,
        f"{place}.max_colluders is {colluders}; expected at most {2 * threshold - size - 1} in a cohort of {size}, or "
        "the masks themselves fall; take a larger cohort",
    )
    refuse_if(
        mechanism.noise.in_shares and survivors - colluders < 2,
        f"{place}.min_survivors - max_colluders is {survivors - colluders}; expected at least 2 honest shares of noise "
        "in every sum; raise min_survivors or lower max_colluders",
    )


def _check_cohort_kind(request: PrivacyRequest, mechanism: Mechanism) -> None:
    refuse_if(
        request.cohorts not in ("rotation", "poisson"),
        f'secure_aggregation.cohorts is "{request.cohorts}"; expected "rotation" or "poisson"',
    )
    if request.cohorts == "rotation":
        return
    refuse_if(
        not mechanism.noise.at_server,
        f'secure_aggregation.cohorts is "poisson" in mode "{request.mode}"; expected "rotation": amplification may be '
        'booked only where the noise does not depend on who came, which is mode "client-central"',
    )
    refuse_if(
        request.masking,
        'secure_aggregation.cohorts is "poisson" with masking; expected "rotation" or masking = false: masks need a '
        "cohort of a known size",
    )


def _check_participations(request: PrivacyRequest) -> None:
    most = request.max_participations
    if most is None:
        return
    needed = -(-request.attempts * request.planned_cohort // request.population_size)
    refuse_if(
        most < needed,
        f"privacy.max_participations is {most}; expected at least {needed} = ceil((rounds + spare_rounds) * "
        "planned_cohort / population_size), or a cohort may not answer",
    )
    refuse_if(
        request.cohorts == "poisson" and most < request.attempts,
        f"privacy.max_participations is {most}; expected at least rounds + spare_rounds = {request.attempts} with "
        "Poisson cohorts: coins are independent only while nobody is left out",
    )


def _check_delta(request: PrivacyRequest, mechanism: Mechanism) -> None:
    if not mechanism.private:
        return
    delta = request.delta
    assert delta is not None
    refuse_if(not 0 < delta < 1, f"privacy.delta is {delta}; expected a number between 0 and 1")
    by_record = mechanism.privacy_unit is PrivacyUnit.RECORD
    units = request.planned_records if by_record else request.population_size
    assert units is not None
    what = "planned_records" if by_record else "population_size"
    refuse_if(
        Fraction(repr(delta)) * units > 1,
        f"privacy.delta is {delta}; expected at most 1/{what} = {1 / units:.3g}: above it, publishing one "
        f"{mechanism.privacy_unit} at random in full would satisfy the guarantee",
    )


def _check_grid(request: PrivacyRequest, mechanism: Mechanism) -> None:
    scale = 2**request.scale_bits
    refuse_if(
        scale * Fraction(repr(request.clipping_norm)) < 1,
        f"secure_aggregation.scale_bits is {request.scale_bits}; clipping_norm {request.clipping_norm} is below one "
        "grid unit; raise scale_bits",
    )
    norm = None if request.max_grad_norm is None else Fraction(repr(request.max_grad_norm))
    units = mechanism.work.record_units(scale=scale, max_grad_norm=norm)
    # sqrt(d) > 0.05 * units, exactly
    refuse_if(
        units is not None and 400 * request.dimension > units**2,
        f"secure_aggregation.scale_bits is {request.scale_bits}; expected a grid so fine that sqrt(dimension) = "
        f"{math.sqrt(request.dimension):.0f} is at most 5 % of 2^scale_bits * max_grad_norm; raise scale_bits",
    )


def noise_to_signal(plan: Plan, request: PrivacyRequest, mechanism: Mechanism) -> float:
    """Norm of a sum's noise over the norm of the largest sum that the planned cohort can make."""
    parties = 1 if mechanism.noise.at_server else plan.planned_cohort
    norm = None if request.max_grad_norm is None else Fraction(repr(request.max_grad_norm))
    units = mechanism.work.record_units(scale=2**plan.scale_bits, max_grad_norm=norm)
    bounds = [plan.planned_cohort * (plan.clip_bound if not mechanism.noise.in_each_vector else math.inf)]
    if units is not None and request.planned_records is not None:
        bounds.append(float(units * request.planned_records))
    return plan.noise_std * math.sqrt(parties * plan.dimension) / min(bounds)


def warnings_of(plan: Plan, request: PrivacyRequest, mechanism: Mechanism) -> tuple[str, ...]:
    """What is allowed and should be known before it is run."""
    warnings: list[str] = []
    if not mechanism.private:
        warnings.append("NOT PRIVATE: clipped sums leave without noise; for comparison only")
    for guarantee in plan.guarantees:
        if guarantee.weak:
            warnings.append(
                f"the {guarantee.privacy_unit}-level guarantee is weak: epsilon {guarantee.epsilon:.2f} is above 10 "
                f"against {guarantee.holds_against[0]}"
            )
    if plan.noise_to_signal > 1:
        warnings.append(
            f"the noise of a round is {plan.noise_to_signal:.2f} times as long as the largest possible sum; expect "
            "little accuracy: more clients or records, fewer rounds or parameters, or a larger epsilon"
        )
    if mechanism.noise.in_shares and not request.masking and plan.guarantee:
        warnings.append(
            "masking is off: the guarantee does not hold against the server, which sees each client's vector at "
            f"epsilon {plan.guarantee.epsilon_if_masking_fails:.2f}"
        )
    return tuple(warnings)
