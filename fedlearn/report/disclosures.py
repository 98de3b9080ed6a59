"""The disclosures that a statement about differential privacy owes its reader, each answered or marked "not claimed".

The list follows what NIST SP 800-226, the DP Deployments Registry and "How to DP-fy ML" ask for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.privacy.guarantee import Guarantee
from fedlearn.report.figures import delta_text, epsilon_text, percent, plain
from fedlearn.report.run_folder import RunFolder, Summary

__all__ = ["Disclosure", "disclosures"]

_RELEASED = {
    "record-distributed": "each round's sum of clipped per-record gradients with noise, every model, the final model",
    "record-local": "each client's noised update in each round, every model, the final model",
    "client-distributed": "each round's sum of clipped client updates with noise, every model, the final model",
    "client-central": "each round's sum of clipped client updates with noise (without it to the server), every model",
    "none": "each round's sum of clipped client updates without noise, every model, the final model",
}


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One line of the checklist; `answer` is None where the run claims nothing."""

    topic: str
    answer: str | None


def disclosures(run: RunFolder, *, audit: str | None) -> tuple[Disclosure, ...]:
    """The fifteen lines, in a fixed order, from what the run folder holds; `audit` is what attacks on it found."""
    summary = run.summary
    answers: tuple[tuple[str, str | None], ...] = (
        ("Who is protected", _of_each(summary, _unit)),
        ("From whom", _of_each(summary, lambda guarantee: "; ".join(guarantee.holds_against))),
        ("What is released", _RELEASED.get(summary.mode)),
        ("Neighboring relation", _of_each(summary, lambda guarantee: guarantee.neighboring_relation)),
        ("Mechanism as executed", _executed(run)),
        ("Accounting", _of_each(summary, _accounting)),
        ("Composition", _composition(summary)),
        ("Spread over clients", _spread(summary)),
        ("Drop-outs", _drop_outs(run)),
        ("Randomness", _randomness(summary)),
        ("Unprotected quantities", "; ".join(summary.unprotected) or None),
        ("Empirical audit", audit),
        ("Utility", _utility(summary)),
        ("Transport and secure aggregation", "masked sums" if summary.masking else None),
        ("Software", ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or None),
    )
    return tuple(Disclosure(topic, answer) for topic, answer in answers)


def _of_each(summary: Summary, text: Callable[[Guarantee], str]) -> str | None:
    """One text for all guarantees, each different one once."""
    return "; ".join(dict.fromkeys(text(guarantee) for guarantee in summary.guarantees)) or None


def _unit(guarantee: Guarantee) -> str:
    return {"record": "one record of one client", "client": "all data of one client"}[guarantee.privacy_unit]


def _accounting(guarantee: Guarantee) -> str:
    return (
        f"{guarantee.accountant}: epsilon {epsilon_text(guarantee.epsilon)} at delta {delta_text(guarantee.delta)} "
        f"for one {guarantee.privacy_unit} ({guarantee.neighboring_relation}) against "
        f"{', '.join(guarantee.holds_against)}"
    )


def _executed(run: RunFolder) -> str | None:
    """Multiplier, sampling and number of the events booked; equal events once."""
    booked = dict.fromkeys(attempt.event for attempt in run.attempts if attempt.event is not None)
    events = "; ".join(
        f"{event.mechanism}, noise multiplier {event.noise_multiplier}, sampled with {event.sampling_probability}"
        for event in booked
    )
    return f"{events}; {plain(run.summary.releases)} releases booked" if events and run.summary.private else None


def _composition(summary: Summary) -> str | None:
    if not summary.private:
        return None
    return (
        f"all {plain(summary.releases)} releases of this run, those of aborted attempts included; "
        "earlier runs on the same data are not part of these figures"
    )


def _spread(summary: Summary) -> str | None:
    if not summary.private:
        return None
    return "one figure for every client: all books hold the same events, whose parameters are public constants"


def _drop_outs(run: RunFolder) -> str | None:
    plan, lost = run.summary.plan, sum(attempt.asked - attempt.survivors for attempt in run.attempts)
    if plan.min_survivors is None or not run.summary.private:
        return None
    return (
        f"no sum of fewer than {plan.min_survivors} clients is used; the noise is sized for that many, less "
        f"{plan.max_colluders or 0} colluding; {lost} replies missing in this run"
    )


def _randomness(summary: Summary) -> str | None:
    if not summary.private:
        return None
    kind = "floating-point (Box-Muller)" if summary.noise == "box-muller" else "exact discrete Gaussian, integers only"
    return f"operating system's generator, AES-CTR; {kind}"


def _utility(summary: Summary) -> str | None:
    if summary.accuracy is None:
        return None
    return f"accuracy {percent(summary.accuracy)} on public held-out data; per class below"
