"""The privacy statement in plain words, for whoever answers for the data: from the certificate and nothing else.

Every sentence with an epsilon in it names the unit, the neighboring relation, delta and the observers against whom it
holds: without them an epsilon means nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report.certified import Certified
from fedlearn.report.figures import delta_text, epsilon_text, odds_text, three_digits_up

__all__ = ["Promise", "Statement", "privacy_statement"]

_UNITS = {
    "record": "any single record of any client",
    "client": "the whole data of any single client",
}
# Neighbors of each unit; the relation is fixed by the unit (docs/specification/privacy.md 1.3).
_RELATIONS = {
    "record": "neighboring data sets differ by one record added or removed",
    "client": "in neighboring data sets that client's data is replaced by none, while the client still takes part",
}
_WITHOUT_IT = {
    "record": "if that record had not been in the data",
    "client": "if that client had held no data",
}
_REPLACED = {
    "record": "one record may be replaced by another instead of added or removed",
    "client": "one client's data may be replaced by other data instead of by none",
}
_NOISE = {
    "shares": "Each client drew its own share of the noise before anything left it.",
    "aggregate": "In this simulation one draw of the sum's noise stood for the clients' own shares; "
    "a deployed client draws its share itself.",
    "box-muller": "In this simulation the noise was drawn in floating point (Box-Muller); its rounding error is not "
    "covered by delta. A deployed client draws exact discrete noise.",
    "clients": "Each client added the full noise to what it sent.",
    "server": "The server added the noise to the sum. It saw the exact sum first and must be trusted with it.",
    "nobody": "No noise was added.",
    "none": "No noise was added.",
}


@dataclass(frozen=True, slots=True)
class Promise:
    """One guarantee in words. Each of `sentence` and `further` can be quoted alone."""

    unit: str
    epsilon: str
    delta: str
    sentence: str
    meaning: str
    further: tuple[str, ...]
    assumptions: tuple[tuple[str, str], ...]  # what is assumed, and who checks it
    accounting: str
    weak: bool


@dataclass(frozen=True, slots=True)
class Statement:
    private: bool
    promises: tuple[Promise, ...]
    masking: str
    noise: str
    not_covered: tuple[str, ...]


def privacy_statement(certified: Certified, *, replaced: Sequence[float | None]) -> Statement:
    """What the run guarantees, under what assumptions, and what it does not cover.

    `replaced` has, for each guarantee, what epsilon becomes under REPLACE_ONE at the same delta, or None where that
    is not known: there the bound of group privacy for two steps is printed.

    Guarantees: every sentence with an epsilon names unit, relation, delta and `holds_against`; a run that is not
    private has no promise.
    """
    return Statement(
        private=certified.private,
        promises=tuple(
            _promise(guarantee, entry["assumptions"], known)
            for guarantee, entry, known in zip(
                certified.guarantees, certified.content["guarantees"], replaced, strict=True
            )
        ),
        masking=_masking(certified),
        noise=_NOISE.get(certified.noise, f"Noise: {certified.noise}."),
        not_covered=_not_covered(certified),
    )


def _promise(guarantee: Guarantee, assumptions: Sequence[Mapping[str, str]], replaced: float | None) -> Promise:
    return Promise(
        unit="Record-level" if guarantee.privacy_unit == "record" else "Client-level",
        epsilon=epsilon_text(guarantee.epsilon),
        delta=delta_text(guarantee.delta),
        sentence=f"Differential privacy with {_bound(guarantee, guarantee.epsilon)}, against {_against(guarantee)}.",
        meaning=_meaning(guarantee),
        further=tuple(_further(guarantee, replaced)),
        assumptions=tuple((entry["text"], entry["checked_by"]) for entry in assumptions),
        accounting=f"Mechanism: {guarantee.mechanism}. Accountant: {guarantee.accountant}.",
        weak=guarantee.weak,
    )


def _bound(guarantee: Guarantee, epsilon: float) -> str:
    """Epsilon with all that it is about, but for the observers."""
    return f"epsilon at most {epsilon_text(epsilon)} at {_about(guarantee)}"


def _about(guarantee: Guarantee) -> str:
    return (
        f"delta = {delta_text(guarantee.delta)} for {_UNITS[guarantee.privacy_unit]} "
        f"({_RELATIONS[guarantee.privacy_unit]}, {guarantee.neighboring_relation})"
    )


def _against(guarantee: Guarantee) -> str:
    *others, last = guarantee.holds_against
    return f"{', '.join(others)} and against {last}" if others else last


def _meaning(guarantee: Guarantee) -> str:
    return (
        f"In plain words: whatever such an observer sees of this run would have been at most "
        f"{odds_text(guarantee.epsilon)} times more or less likely {_WITHOUT_IT[guarantee.privacy_unit]}, "
        f"but for an extra probability of at most {delta_text(guarantee.delta)}."
    )


def _further(guarantee: Guarantee, replaced: float | None) -> list[str]:
    lines = [_replace_one(guarantee, replaced)]
    alone = guarantee.epsilon_if_masking_fails
    if alone is not None:
        left = _bound(guarantee, alone) if math.isfinite(alone) else "nothing"
        lines.append(
            "If masking fails or is off, so that somebody sees one client's vector by itself, what is left is "
            f"{left}, against whoever sees that vector."
        )
    if guarantee.epsilon_estimate is not None and math.isfinite(guarantee.epsilon_estimate):
        lines.append(
            f"A tighter accountant puts it near epsilon {epsilon_text(guarantee.epsilon_estimate)} at "
            f"{_about(guarantee)}, against {_against(guarantee)}: an estimate, not a promise."
        )
    return lines


def _replace_one(guarantee: Guarantee, replaced: float | None) -> str:
    """What REPLACE_ONE costs: at half the noise multiplier where that is known, else the general bound."""
    if replaced is not None:
        how, bound = "half the noise multiplier", f"{epsilon_text(replaced)} at delta = {delta_text(guarantee.delta)}"
    else:
        how, bound = "two steps, by group privacy", _two_steps(guarantee)
    return (
        f"If {_REPLACED[guarantee.privacy_unit]} (REPLACE_ONE: {how}), epsilon is at most {bound} for "
        f"{_UNITS[guarantee.privacy_unit]}, against {_against(guarantee)}."
    )


def _two_steps(guarantee: Guarantee) -> str:
    """Group privacy of two steps: (2 epsilon, (1 + e^epsilon) delta) (Vadhan 2017, lemma 2.2)."""
    epsilon, delta = guarantee.epsilon, guarantee.delta
    doubled = 1.0 if epsilon > 50 else min(1.0, (1 + math.exp(epsilon)) * delta)
    if doubled == 1.0:
        return f"{epsilon_text(2 * epsilon)} at delta = 1, which promises nothing,"
    return f"{epsilon_text(2 * epsilon)} at delta = {three_digits_up(doubled)}"


def _masking(certified: Certified) -> str:
    if certified.masking:
        return "Masking was on: the server could see only sums over clients, never one client's vector."
    seen = "Masking was off: the server could see each client's vector by itself"
    if not certified.private:
        return f"{seen}, without noise."
    noise = MECHANISMS[certified.mode].noise
    if noise.in_shares:
        return f"{seen}, with at most one client's share of the noise. Against the server the guarantee does not hold."
    if noise.at_server:
        return f"{seen}, without noise. It must be trusted with all of them."
    return f"{seen}, with that client's full noise in it; the guarantee does not rest on masking."


def _not_covered(certified: Certified) -> tuple[str, ...]:
    """What no guarantee of this run speaks of; the run's own list of unprotected quantities comes after these."""
    if not certified.private:
        return ()
    lines = [
        "Facts about the population: a useful model learns them, whoever's data it was trained on.",
        "Other runs on the same data, choosing settings among them: this page is about one run, and losses add up.",
    ]
    units = {guarantee.privacy_unit for guarantee in certified.guarantees}
    if "record" in units:
        lines.append(
            "People with several records, or with records at two clients: the promise is about one record, "
            "and weakens with each further one."
        )
    if "client" in units:
        lines.append("That a client took part: this is public.")
    if certified.simulated:
        lines.append(
            "The computer this simulation ran on: it held all records. The guarantee is about what the simulated "
            "parties would have seen."
        )
    return tuple(lines)
