"""The fifteen things that a statement about differential privacy owes its reader, each from the certificate or
"not claimed".

The list follows what NIST SP 800-226, the DP Deployments Registry and "How to DP-fy ML" ask for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.privacy.guarantee import Guarantee
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.report.certified import Certified
from fedlearn.report.figures import delta_text, epsilon_text, percent, plain

__all__ = ["RANDOMNESS", "RELATIONS", "UNITS", "Disclosure", "disclosures"]

UNITS: Final = {"record": "one record of one client", "client": "all data of one client"}
RELATIONS: Final = {
    "record": "records added or removed",
    "client": "clients whose data is replaced by none; that they take part is public",
}
RANDOMNESS: Final = {
    "shares": "exact discrete Gaussian, integers only, in one share a client",
    "clients": "exact discrete Gaussian, integers only, at each client",
    "server": "exact discrete Gaussian, integers only, at the server",
    "box-muller": "floating-point (Box-Muller) in this simulation",
    "aggregate": "one exact discrete draw stood for the clients' shares in this simulation",
}


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One line of the checklist; `answer` is None where the run claims nothing."""

    topic: str
    answer: str | None


def disclosures(certified: Certified, *, audit: str | None) -> tuple[Disclosure, ...]:
    """The fifteen lines, in a fixed order; `audit` is what attacks on the run found."""
    content = certified.content
    answers: tuple[tuple[str, str | None], ...] = (
        ("Who is protected", _of_each(certified, lambda guarantee: UNITS[guarantee.privacy_unit])),
        ("From whom", _of_each(certified, _from_whom)),
        ("What is released", MECHANISMS[certified.mode].released if content["events"] else None),
        ("Neighboring relation", _of_each(certified, _relation)),
        ("Mechanism as executed", _executed(certified)),
        ("Accounting", "; ".join(map(_accounting, content["guarantees"])) or None),
        ("Composition", _composition(certified)),
        ("Spread over clients", _spread(certified)),
        ("Drop-outs", _drop_outs(certified)),
        ("Randomness", _randomness(certified)),
        ("Unprotected quantities", "; ".join(content["unprotected"]) or None),
        ("Empirical audit", audit),
        ("Utility", _utility(certified)),
        ("Security and software", _security(certified)),
        ("Limits, date, signatures", _signatures(content)),
    )
    return tuple(Disclosure(topic, answer) for topic, answer in answers)


def _of_each(certified: Certified, text: Callable[[Guarantee], str]) -> str | None:
    """One text for all guarantees, each different one once."""
    return "; ".join(dict.fromkeys(text(guarantee) for guarantee in certified.guarantees)) or None


def _from_whom(guarantee: Guarantee) -> str:
    return f"{'; '.join(guarantee.holds_against)}, if {'; '.join(guarantee.assumptions) or 'the arithmetic holds'}"


def _relation(guarantee: Guarantee) -> str:
    return f"{guarantee.neighboring_relation}: {RELATIONS[guarantee.privacy_unit]}"


def _accounting(entry: Mapping[str, Any]) -> str:
    epsilon, planned = (epsilon_text(float(entry[name])) for name in ("epsilon", "epsilon_planned"))
    profile = ", ".join(
        f"{epsilon_text(float(point['epsilon']))} at {delta_text(float(point['delta']))}" for point in entry["profile"]
    )
    mu = entry["mu"]
    gaussian = f"; {mu}-GDP, zCDP rho {plain(round(float(mu) ** 2 / 2 + 5e-7, 6))}" if mu else ""
    return (
        f"{entry['accountant']}: epsilon {epsilon} (planned: {planned}) at delta {delta_text(float(entry['delta']))} "
        f"for one {entry['privacy_unit']} ({entry['neighboring_relation']}) against "
        f"{', '.join(entry['holds_against'])}; epsilon over delta: {profile}{gaussian}"
    )


def _executed(certified: Certified) -> str | None:
    """Multiplier, sampling and number of the events booked; equal events once."""
    content = certified.content
    events = [line["event"] for line in content["events"] if line["event"] is not None]
    if not events or not certified.private:
        return None
    clip = ", ".join(
        f"{name} {certified.config['privacy'][name]}"
        for name in ("max_grad_norm", "clipping_norm")
        if name in certified.config["privacy"]
    )
    kinds = dict.fromkeys(
        f"{event['mechanism']}, noise multiplier {event['noise_multiplier']}, sampled with "
        f"{event['sampling_probability']}, {plain(event['count'])} a release"
        for event in events
    )
    return f"{clip}; {'; '.join(kinds)}; {plain(certified.releases)} releases booked in {plain(len(events))} attempts"


def _composition(certified: Certified) -> str | None:
    if not certified.private:
        return None
    return (
        f"all {plain(certified.releases)} releases of this run, those of aborted attempts included; "
        "earlier runs on the same data and the choice of settings are not part of these figures"
    )


def _spread(certified: Certified) -> str | None:
    if not certified.private:
        return None
    return "one figure for every client: all books hold the same events, whose parameters are public constants"


def _drop_outs(certified: Certified) -> str | None:
    if not certified.private:
        return None
    asked = [line for line in certified.content["events"] if line["asked"] is not None]
    missing = sum(line["asked"] - line["survived"] for line in asked)
    aggregation = certified.config["secure_aggregation"]
    return (
        f"no sum of fewer than {aggregation['min_survivors']} clients is used; the noise is sized for "
        f"{certified.content['noise']['shares']} shares of it; "
        + (f"{missing} replies missing in this run" if asked else "who was asked stays with the server")
    )


def _randomness(certified: Certified) -> str | None:
    if not certified.private:
        return None
    return f"operating system's generator, AES-CTR; {RANDOMNESS.get(certified.noise, certified.noise)}"


def _utility(certified: Certified) -> str | None:
    scores = certified.content["scores"]
    if scores is None:
        return None
    return f"accuracy {percent(float(scores['accuracy']))} on public held-out data; per class below"


def _security(certified: Certified) -> str | None:
    section, versions = certified.content["secure_aggregation"], certified.content["versions"]
    masked = (
        ""
        if section is None
        else (
            f"{section['version']}, threshold {section['threshold']} of {section['planned_cohort']}, "
            f"{len(section['transcripts'])} transcripts, roster {section['roster_hash']}"
        )
    )
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "; ".join(part for part in (masked, software) if part) or None


def _signatures(content: Mapping[str, Any]) -> str:
    attesting = len(content["ledger"]["attestations"])
    who = "one ledger" if content["kind"] == "simulation" else f"{attesting} data holders"
    return (
        f"{content['run']['started']} to {content['run']['ended']}; signed by key {content['coordinator']['key']}; "
        f"{who} attested; no file shows that events happened, and each data holder checks who takes part"
    )
