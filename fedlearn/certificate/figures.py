"""The privacy figures of a certificate, derived from the configuration's bytes, the noise drawn and what was booked.

Whoever makes a certificate and whoever checks it call the same functions, and neither trusts a figure that it read.
"""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from fedlearn.certificate.form import decimal_up, delta_text
from fedlearn.privacy.accounting import Event, epsilon_of
from fedlearn.privacy.assumptions import assumption_of
from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.refusals import Request
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

__all__ = ["booked_event", "guarantees_of", "noise_of", "request_of"]


def request_of(config: bytes, *, population_size: int, dimension: int) -> Request:
    """The keys of a canonical configuration that its privacy depends on.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: the bytes are not those of a configuration.
    """
    values = json.loads(config)
    run, training = values["run"], values["training"]
    privacy, aggregation = values["privacy"], values["secure_aggregation"]
    sampled = privacy.get("sampling_probability")
    return Request(
        mode=privacy["mode"],
        target_epsilon=_number(privacy.get("target_epsilon")),
        delta=_number(privacy.get("delta")),
        rounds=run["rounds"],
        spare_rounds=run["spare_rounds"],
        max_grad_norm=_number(privacy.get("max_grad_norm")),
        clipping_norm=float(privacy["clipping_norm"]),
        sampling_probability=None if sampled is None else Fraction(sampled),
        local_steps=training.get("local_steps"),
        planned_records=privacy.get("planned_records"),
        population_size=population_size,
        planned_cohort=aggregation["planned_cohort"],
        min_survivors=aggregation["min_survivors"],
        max_colluders=aggregation.get("max_colluders"),
        max_participations=privacy.get("max_participations"),
        scale_bits=aggregation["scale_bits"],
        dimension=dimension,
        cohorts=aggregation["cohorts"],
        masking=aggregation["masking"],
    )


def noise_of(request: Request, noise_std: int) -> dict[str, Any]:
    """Who adds the noise, its standard deviation, how far one unit moves the sum, how many shares a sum is sure of."""
    return {
        "by": MECHANISMS[request.mode].noise_by,
        "std": noise_std,
        "sensitivity": sensitivity_of(request, request.scale_bits),
        "shares": shares_of(request),
    }


def booked_event(request: Request, noise_std: int) -> dict[str, object] | None:
    """The event of one attempt as JSON has it; None where nothing is guaranteed."""
    return releases_of(request, noise_std).event.as_dict() if MECHANISMS[request.mode].private else None


def guarantees_of(
    request: Request, *, noise_std: int, attempts: int, masked: bool, estimated: bool = True
) -> list[dict[str, Any]]:
    """What holds after `attempts` attempts that asked for vectors, aborted ones among them; nothing after none.

    `masked`: whether transcripts of secure aggregation are at hand. Without `estimated` the tighter figures are left
    out, which take a second.
    """
    if not MECHANISMS[request.mode].private or attempts == 0:
        return []
    of_release = releases_of(request, noise_std)
    most = participations(
        attempts,
        planned_cohort=request.planned_cohort,
        population_size=request.population_size,
        cohorts=request.cohorts,
    )
    stated = stated_guarantees(request, masked=masked)
    events = (of_release.event,) if len(stated) == 1 else (of_release.event, of_release.ledger_event)
    return [
        _entry(request, guarantee, event, of_release, releases=most, estimated=estimated)
        for guarantee, event in zip(stated, events, strict=True)
    ]


def _entry(
    request: Request, guarantee: Guarantee, event: Event, of_release: Releases, *, releases: int, estimated: bool
) -> dict[str, Any]:
    ceiling = request.target_epsilon or 0.0
    lone, unsampled = of_release.lone_event, event.sampling_probability == 1
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
        "mu": decimal_up(math.sqrt(event.count * releases) / event.noise_multiplier) if unsampled else None,
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


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
