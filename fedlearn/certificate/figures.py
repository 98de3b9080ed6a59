"""The privacy figures of a certificate, derived from the configuration's bytes, the noise drawn and what was booked.

Whoever makes a certificate and whoever checks it call the same functions, and neither trusts a figure that it read.
"""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from fedlearn.bounded import read_json, read_number
from fedlearn.certificate.form import decimal_up, delta_text
from fedlearn.privacy.accounting import Event, epsilon_of
from fedlearn.privacy.assumptions import assumption_of
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.refusals import check_request
from fedlearn.privacy.release import (
    Releases,
    most_releases,
    participations,
    recounted,
    releases_of,
    sensitivity_of,
    shares_of,
    stated_guarantees,
)
from fedlearn.privacy.request import PrivacyRequest

__all__ = ["booked_event", "guarantees_of", "mu_of", "noise_of", "releases_of_one", "request_of"]

_ABOVE_COUNTS: Final = 1 << 31
_FRACTION: Final = re.compile(r"[1-9][0-9]{0,9}(/[1-9][0-9]{0,9})?")


def request_of(config: bytes, *, population_size: int, dimension: int) -> PrivacyRequest:
    """The keys of a canonical configuration that its privacy depends on.

    Raises:
        ConfigError: the plan refuses such a run.
        LookupError, TypeError, ValueError, AttributeError: the bytes are not those of a configuration.
    """
    values = read_json(config, what="the configuration")
    run, training = values["run"], values["training"]
    privacy, aggregation = values["privacy"], values["secure_aggregation"]
    sampled = privacy.get("sampling_probability")
    request = PrivacyRequest(
        mode=str(privacy["mode"]),
        target_epsilon=_number(privacy.get("target_epsilon")),
        delta=_number(privacy.get("delta")),
        rounds=_count(run["rounds"]),
        spare_rounds=_count(run["spare_rounds"]),
        max_grad_norm=_number(privacy.get("max_grad_norm")),
        clipping_norm=read_number(privacy["clipping_norm"]),
        sampling_probability=None if sampled is None else _probability(sampled),
        local_steps=_count_or_none(training.get("local_steps")),
        planned_records=_count_or_none(privacy.get("planned_records")),
        population_size=_count(population_size),
        planned_cohort=_count(aggregation["planned_cohort"]),
        min_survivors=_count(aggregation["min_survivors"]),
        max_colluders=_count_or_none(aggregation.get("max_colluders")),
        max_participations=_count_or_none(privacy.get("max_participations")),
        scale_bits=_count(aggregation["scale_bits"]),
        dimension=dimension,
        cohorts=str(aggregation["cohorts"]),
        masking=_flag(aggregation["masking"]),
    )
    check_request(request)
    return request


def noise_of(request: PrivacyRequest, noise_std: int) -> dict[str, Any]:
    """Who adds the noise, its standard deviation, how far one unit moves the sum, how many shares a sum is sure of."""
    return {
        "by": MECHANISMS[request.mode].noise.name,
        "std": noise_std,
        "sensitivity": sensitivity_of(request, request.scale_bits),
        "shares": shares_of(request),
    }


def booked_event(request: PrivacyRequest, noise_std: int) -> dict[str, object] | None:
    """The event of one attempt as JSON has it; None where nothing is guaranteed."""
    return releases_of(request, noise_std).event.as_dict() if MECHANISMS[request.mode].private else None


def releases_of_one(
    request: PrivacyRequest,
    *,
    kind: str,
    events: Sequence[Mapping[str, Any]],
    attested: Sequence[int],
) -> int:
    """The most releases of one client that nothing signed rules out; 0 where nobody was asked.

    In a simulation, whose one ledger is its owner's word, what a rotation over its attempts gives. In a deployment
    `attested` has what each data holder signed: while anybody's is missing, an attempt that the events leave out, or a
    cohort that is no rotation, may have been that holder's, so that only the plan's own bound A is sure.
    """
    if kind == "simulation":
        return participations(
            len(events),
            planned_cohort=request.planned_cohort,
            population_size=request.population_size,
            cohorts=request.cohorts,
        )
    if len(attested) < request.population_size:
        return most_releases(request)
    summed = sum(line["survived"] or 0 for line in events if not line["aborted"])
    return max(*attested, -(-summed // request.population_size))


def guarantees_of(
    request: PrivacyRequest, *, noise_std: int, releases: int, masked: bool, estimated: bool = True
) -> list[dict[str, Any]]:
    """What holds after so many releases of one client, aborted attempts among them; nothing after none.

    `masked`: whether transcripts of secure aggregation are at hand. Without `estimated` the tighter figures are left
    out, which take a second.
    """
    if not MECHANISMS[request.mode].private or releases == 0:
        return []
    of_release = releases_of(request, noise_std)
    stated = stated_guarantees(request, masked=masked)
    events = (of_release.event,) if len(stated) == 1 else (of_release.event, of_release.ledger_event)
    return [
        _entry(
            request,
            guarantee,
            event,
            of_release,
            releases=releases,
            estimated=estimated,
        )
        for guarantee, event in zip(stated, events, strict=True)
    ]


def mu_of(event: Event, releases: int) -> float:
    """The mu of so many releases together in Gaussian differential privacy, where nothing is sampled."""
    return math.sqrt(event.count * releases) / event.noise_multiplier


def _entry(
    request: PrivacyRequest, guarantee: Guarantee, event: Event, of_release: Releases, *, releases: int, estimated: bool
) -> dict[str, Any]:
    ceiling = request.target_epsilon or 0.0
    lone, unsampled = of_release.event_of_single_vector, event.sampling_probability == 1
    counted = recounted(guarantee, event, lone, releases=releases, ceiling=ceiling, estimated=estimated)
    planned = recounted(guarantee, event, None, releases=most_releases(request), ceiling=ceiling, estimated=False)
    told = counted.as_dict()
    kept = ("privacy_unit", "neighboring_relation", "holds_against", "mechanism", "accountant")
    alone, estimate = counted.epsilon_if_masking_fails, counted.epsilon_estimate
    return {name: told[name] for name in kept} | {
        "assumptions": [_assumption(text) for text in counted.assumptions],
        "releases": releases,
        "delta": delta_text(counted.delta),
        "epsilon": decimal_up(counted.epsilon),
        "epsilon_planned": decimal_up(planned.epsilon),
        "epsilon_estimate": None if estimate is None else decimal_up(estimate),
        "epsilon_if_masking_fails": None if alone is None else decimal_up(alone),
        "mu": decimal_up(mu_of(event, releases)) if unsampled else None,
        "profile": _profile([(event, releases)], delta=Decimal(repr(counted.delta)), ceiling=ceiling),
    }


def _profile(events: Sequence[tuple[Event, int]], *, delta: Decimal, ceiling: float) -> list[dict[str, str]]:
    """Epsilon at ten times delta, at delta, and at a tenth of it."""
    return [
        {
            "delta": delta_text(at),
            "epsilon": decimal_up(epsilon_of(events, delta=float(at), epsilon_ceiling=ceiling)),
        }
        for at in (delta.scaleb(1), delta, delta.scaleb(-1))
        if at < 1
    ]


def _assumption(text: str) -> dict[str, str]:
    known = assumption_of(text)
    return {"id": known.id, "text": known.text, "checked_by": known.checked_by}


def _number(text: object) -> float | None:
    return None if text is None else read_number(text)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _ABOVE_COUNTS:
        raise ValueError(f"expected an integer of at least 0 and below 2^31, not {str(value)[:40]}")
    return value


def _count_or_none(value: object) -> int | None:
    return None if value is None else _count(value)


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, not {str(value)[:40]}")
    return value


def _probability(text: object) -> Fraction:
    """A reduced fraction, as a canonical configuration has it: "1" or "1/3"."""
    if not isinstance(text, str) or not _FRACTION.fullmatch(text):
        raise ValueError(f"expected a fraction a/b as text, not {str(text)[:40]!r}")
    return Fraction(text)
