"""Check a certificate against a model file and a roster, without the run, a network or a GPU stack.

Everything that can be worked out again is: bytes, hashes, events from the configuration and the noise, every epsilon
from the events, counts, signatures. What cannot be shown by any file is said.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.certificate.attestation import Attestation, unprotected, unseparated
from fedlearn.certificate.build import NO_ROSTER, SECURE_AGGREGATION, model_bytes_of
from fedlearn.certificate.figures import booked_event, guarantees_of, mu_of, noise_of, releases_of_one, request_of
from fedlearn.certificate.form import MalformedError, is_signed, number_of, parse
from fedlearn.errors import ConfigError
from fedlearn.model.layout import Layout
from fedlearn.policy.roster import Roster
from fedlearn.privacy.accounting import Event, gaussian_delta
from fedlearn.privacy.calibration import check_noise
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.release import releases_of
from fedlearn.privacy.request import PrivacyRequest, threshold_of

__all__ = ["CANNOT_SHOW", "Check", "Verification", "verify_certificate"]

CANNOT_SHOW: Final = (
    "that the events happened as they are written, or that no other release was made",
    "that the model is the sum of what the data holders sent",
    "that a data holder's records are what it says, and one person's are at one of them only",
    "how a data holder ran it (same_user, unconfirmed members): its signature is not over that, the coordinator's is",
    "that nobody but the counted colluders worked with the server",
    "scores, audits, purpose, times, versions, and whether a run called a simulation was one: the coordinator's word",
    "epsilon_estimate where records or cohorts are sampled: a tighter figure for information",
)
_WITHOUT_ROSTER: Final = (
    "who signed, and whether population_size and the attestations are of all data holders: give the roster (--roster)"
)
_AUDIT_FORMAT: Final = "fedlearn/v1/audit"

_NUMBERS: Final = ("epsilon", "epsilon_planned", "epsilon_estimate", "epsilon_if_masking_fails", "mu")
# The sixth decimal, rounded up, may differ between the mathematics of two machines.
_TOLERANCE: Final = 2e-6
# What a content of the right types but absurd values may raise where something is worked out from it.
_ABSURD: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what, whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one certificate. `signers` are names from the roster; None where no roster was given.

    `missing` are the names of those of a deployment's roster who attest nothing.
    """

    checks: tuple[Check, ...]
    signers: tuple[str, ...] | None
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """The last line."""
        if not self.passed:
            return f"REFUSED: {sum(not check.passed for check in self.checks)} of {len(self.checks)} checks fail"
        if self.signers is None:
            return "consistent; signers not identified"
        missing = f"; NOT attested by {', '.join(self.missing)}: the planned releases are stated"
        return f"signed by {', '.join(self.signers)}{missing if self.missing else ''}"

    def as_dict(self) -> dict[str, Any]:
        """The object of `fedlearn verify --json`."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "signers": None if self.signers is None or not self.passed else list(self.signers),
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks],
            "cannot_show": list(self.cannot_show),
        }

    @property
    def cannot_show(self) -> tuple[str, ...]:
        """What these files, or no file at all, can show."""
        return CANNOT_SHOW if self.signers is not None else (*CANNOT_SHOW, _WITHOUT_ROSTER)


def verify_certificate(certificate: bytes, model_file: bytes, roster: Roster | None = None) -> Verification:
    """Check everything that a certificate says.

    Guarantees:
        a change of any bit of certificate or model is refused;
        no content raises anything but the error below.

    Raises:
        ConfigError: `certificate` is something else.
    """
    try:
        content = parse(certificate)
    except MalformedError as error:
        return Verification((Check("form", False, str(error)),), None)
    checks = [Check("form", True, f"canonical, {len(certificate)} bytes")]
    checks += [_run(name, check, content, model_file) for name, check in _CHECKS]
    if roster is None:
        return Verification(tuple(checks), None)
    check, signers = _identified(content, roster)
    return Verification((*checks, check), signers, _missing(content, roster))


class _WrongError(Exception):
    """A check does not hold; the text says what was found."""


def _run(name: str, check: "_Checking", content: Mapping[str, Any], model_file: bytes) -> Check:
    try:
        return Check(name, True, check(content, model_file))
    except (_WrongError, ConfigError) as error:
        return Check(name, False, str(error))
    except _ABSURD as error:
        return Check(name, False, f"cannot be worked out from the certificate ({type(error).__name__})")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _WrongError(otherwise)


def _signature(content: Mapping[str, Any], _: bytes) -> str:
    _require(is_signed(content), "the coordinator's signature is not over these bytes, or of another key")
    return f"by key {content['coordinator']['key'][:16]}... over all the rest"


def _config(content: Mapping[str, Any], _: bytes) -> str:
    config = content["config"].encode("ascii")
    _require(hashlib.sha256(config).hexdigest() == content["config_hash"], "config_hash is not that of the bytes")
    canonical = canonical_json(read_json(config, what="the configuration")) == config
    _require(canonical, "the configuration is not canonical JSON")
    request = _request(content)
    return f"hash {content['config_hash'][:16]}..., mode {request.mode}"


def _model(content: Mapping[str, Any], model_file: bytes) -> str:
    subject = content["subject"]
    digest = hashlib.sha256(model_file).hexdigest()
    _require(digest == subject["file_sha256"], "the file is another one than the certified model")
    try:
        body = model_bytes_of(model_file, _layout(content))
    except (ConfigError, ValueError) as error:
        raise _WrongError(f"the file does not hold the certified tensors: {error}") from None
    same = hashlib.sha256(body).hexdigest() == subject["model_hash"]
    _require(same, "the tensors are others than the certified ones")
    return f"{_layout(content).dimension} parameters, hash {subject['model_hash'][:16]}..."


def _events(content: Mapping[str, Any], _: bytes) -> str:
    request, noise = _request(content), content["noise"]
    check_noise(request, noise["std"])
    derived = noise_of(request, noise["std"])
    _require(derived.items() <= noise.items(), "sensitivity or shares are not those of the configuration")
    drawn = {derived["by"]}
    if content["kind"] == "simulation":
        summed = (False,) if request.masking else (False, True)
        drawn |= {MECHANISMS[request.mode].noise.drawn_in_simulation(summed=which) for which in summed}
    _require(noise["drawn"] in drawn, f"the noise is said to be drawn by {noise['drawn']}")
    expected, events = booked_event(request, noise["std"]), content["events"]
    _require(all(line["event"] == expected for line in events), "an event is not what the configuration and noise give")
    positions = [(line["round"], line["attempt"]) for line in events]
    _require(positions == sorted(set(positions)), "rounds and attempts do not grow")
    sums = [line["round"] for line in events if not line["aborted"]]
    whole = len(sums) == request.rounds and all(n == number for n, number in enumerate(sums, start=1))
    _require(whole, "not every round has exactly one sum")
    _require(len(events) <= request.attempts, "more attempts than rounds and spare rounds")
    _counts(request, events)
    return f"{len(events)} attempts, {len(events) - len(sums)} aborted; noise and sensitivity follow from the config"


def _counts(request: PrivacyRequest, events: Sequence[Mapping[str, Any]]) -> None:
    """Who was asked and survived: secret where the guarantee rests on that."""
    for line in events:
        asked, survived = line["asked"], line["survived"]
        if request.cohorts == "poisson":
            _require(asked is None and survived is None, "secret cohorts are stated")
            continue
        _require(asked is not None and survived is not None, "a cohort is missing")
        _require(survived <= asked <= request.planned_cohort, "more survivors than asked, or more asked than planned")
        enough = line["aborted"] or survived >= request.min_survivors
        _require(enough, f"round {line['round']} is a sum of fewer than min_survivors")


def _guarantees(content: Mapping[str, Any], _: bytes) -> str:
    request, stated = _request(content), content["guarantees"]
    expected = guarantees_of(
        request,
        noise_std=content["noise"]["std"],
        releases=_releases(content),
        masked=content["secure_aggregation"] is not None,
        estimated=False,
    )
    _require(len(stated) == len(expected), "there are more or fewer guarantees than the events give")
    for said, derived in zip(stated, expected, strict=True):
        if derived["mu"] is not None:
            _check_estimate(said, mu_of(_ledger_event(content), derived["releases"]))
        for name in sorted(derived.keys() - {"epsilon_estimate"}):
            agrees = _agree(name, said[name], derived[name])
            _require(agrees, f"{name} is {said[name]}; what is signed gives {derived[name]}")
    if not stated:
        return "none: NOT PRIVATE"
    return "; ".join(f"epsilon {g['epsilon']} at delta {g['delta']} for one {g['privacy_unit']}" for g in stated)


def _check_estimate(said: Mapping[str, Any], mu: float) -> None:
    """The tighter figure is for information; where nothing is sampled, its delta is worked out from mu."""
    if said["epsilon_estimate"] is not None:
        delta = gaussian_delta(mu, number_of(said["epsilon_estimate"]) + _TOLERANCE)
        _require(delta <= number_of(said["delta"]), "epsilon_estimate is lower than mu allows")


def _ledger_event(content: Mapping[str, Any]) -> Event:
    """One release as a data holder's own ledger counts it."""
    return releases_of(_request(content), content["noise"]["std"]).ledger_event


def _agree(name: str, said: Any, derived: Any) -> bool:
    if name == "profile":
        return [p["delta"] for p in said] == [p["delta"] for p in derived] and all(
            _agree("epsilon", p["epsilon"], q["epsilon"]) for p, q in zip(said, derived, strict=True)
        )
    if name not in _NUMBERS or None in (said, derived):
        return bool(said == derived)
    left, right = number_of(said), number_of(derived)
    return left == right or abs(left - right) <= _TOLERANCE * max(1.0, right)


def _secure_aggregation(content: Mapping[str, Any], _: bytes) -> str:
    request, section = _request(content), content["secure_aggregation"]
    if section is None:
        deployed = content["kind"] == "deployment"
        _require(not deployed, "off; no data holder lets a vector leave without masks")
        return "off: the coordinator saw each vector; nothing is claimed"
    _require(request.masking, "claimed, but the configuration has masking off")
    numbers = (request.planned_cohort, request.min_survivors, request.max_colluders or 0)
    stated = (section["planned_cohort"], section["min_survivors"], section["max_colluders"])
    _require(numbers == stated, "its numbers are not those of the configuration")
    _require(section["version"] == SECURE_AGGREGATION, f"the version is another than {SECURE_AGGREGATION}")
    _require(section["threshold"] == threshold_of(request.planned_cohort), "the threshold is not floor(2P/3) + 1")
    sums = sum(not line["aborted"] for line in content["events"])
    transcripts = section["transcripts"]
    _require(len(transcripts) == sums == len(set(transcripts)), "not every sum has a transcript of its own")
    return f"{sums} transcripts, threshold {section['threshold']} of {section['planned_cohort']}"


def _ledger(content: Mapping[str, Any], _: bytes) -> str:
    attestations = list(_attestations(content))
    section = content["secure_aggregation"]
    session = bytes.fromhex(content["run"]["session"])
    roster_hash = bytes.fromhex(section["roster_hash"]) if section else NO_ROSTER
    model_hash, event = bytes.fromhex(content["subject"]["model_hash"]), _event_in_ledgers(content)
    simulated = content["kind"] == "simulation"
    most = _releases(content) if simulated else len(content["events"])
    for entry in attestations:
        who = f"the attestation of {entry.client_id.hex()}"
        _require(entry.config_hash.hex() == content["config_hash"], f"{who} is about another configuration")
        signed = entry.holds(session=session, roster_hash=roster_hash, model_hash=model_hash, event=event)
        _require(signed, f"{who} is not signed over this session, model, ledger and event")
        _require(entry.releases <= most, f"{who} books more releases than the events say")
        _require(entry.entries >= 2 * entry.releases, f"{who} has fewer entries than its releases need")
    _require(len({entry.client_id for entry in attestations}) == len(attestations), "a data holder attests twice")
    _require(set(unprotected(attestations)) <= set(content["unprotected"]), "what is not protected is not all named")
    if simulated:
        return _one_ledger(content, attestations)
    coordinator = bytes.fromhex(content["coordinator"]["key"])
    keys = {entry.key for entry in attestations} | {coordinator}
    _require(len(keys) == len(attestations) + 1, "one key attests for two parties")
    many, population = len(attestations), content["population_size"]
    _require(many <= population, "more data holders attest than there are")
    missing = f"; {population - many} are missing, so the planned releases are stated" if many < population else ""
    shared = unseparated(attestations)
    shown = f"; NOT PROTECTED: {shared}" if shared else ""
    return f"{many} of {population} data holders attest what they booked{missing}{shown}"


def _event_in_ledgers(content: Mapping[str, Any]) -> bytes | None:
    """The canonical event that each ledger must have booked, and signed, for this configuration and noise."""
    return _ledger_event(content).to_bytes() if MECHANISMS[_request(content).mode].private else None


def _one_ledger(content: Mapping[str, Any], attestations: Sequence[Attestation]) -> str:
    ledger = content["ledger"]
    _require(len(attestations) == 1, "a simulation has one ledger; expected one attestation")
    entry = attestations[0]
    _require(entry.key.hex() == content["coordinator"]["key"], "the one ledger is signed by another key than the run's")
    same = entry.ledger_head.hex() == ledger["head"] and entry.entries == ledger["entries"]
    _require(same, "the attested ledger is another one than the stated")
    return f"simulation: one ledger of {entry.entries} entries, at most {entry.releases} releases of a client"


def _releases(content: Mapping[str, Any]) -> int:
    """The most releases of one client that nothing signed rules out."""
    return releases_of_one(
        _request(content),
        kind=content["kind"],
        events=[line for line in content["events"] if line["event"] is not None],
        attested=[entry["releases"] for entry in content["ledger"]["attestations"]],
    )


def _scores(content: Mapping[str, Any], _: bytes) -> str:
    """Nothing shows that they are true; what no run writes is refused."""
    scores = content["scores"]
    _require(scores is None or number_of(scores["accuracy"]) <= 1, "the accuracy is above 1")
    for audit in content["audit"]:
        known = audit.get("format") == _AUDIT_FORMAT and isinstance(audit.get("kind"), str)
        _require(known, f'an audit is not one of format "{_AUDIT_FORMAT}"')
    return f"{'none' if scores is None else 'said'} by the coordinator alone, {len(content['audit'])} audits"


_Checking = Callable[[Mapping[str, Any], bytes], str]
_CHECKS: Final[tuple[tuple[str, _Checking], ...]] = (
    ("signature", _signature),
    ("config", _config),
    ("model", _model),
    ("events", _events),
    ("guarantees", _guarantees),
    ("secure aggregation", _secure_aggregation),
    ("ledger", _ledger),
    ("scores", _scores),
)


def _identified(content: Mapping[str, Any], roster: Roster) -> tuple[Check, tuple[str, ...]]:
    """Whether the signers are the roster's, and their names."""
    try:
        signers = tuple(_signers(content, roster))
    except _WrongError as error:
        return Check("roster", False, str(error)), ()
    return Check("roster", True, f"hash {roster.sha256.hex()[:16]}..., {len(roster.members)} members"), signers


def _signers(content: Mapping[str, Any], roster: Roster) -> Iterator[str]:
    section = content["secure_aggregation"]
    _require(section is not None, "this run had no roster")
    _require(section["roster_hash"] == roster.sha256.hex(), "this is another roster than the run's")
    many = len(roster.members)
    _require(content["population_size"] == many, f"population_size is {content['population_size']}; it has {many}")
    same = roster.coordinator.key.hex() == content["coordinator"]["key"]
    _require(same, "the certificate is not signed by the roster's coordinator")
    yield f"{roster.coordinator.name} ({roster.coordinator.fingerprint})"
    if content["kind"] == "simulation":
        return
    members = {entry.client_id: entry for entry in roster.members}
    _require(bool(content["ledger"]["attestations"]), f"none of its {many} data holders attests anything")
    for attestation in _attestations(content):
        member = members.get(attestation.client_id)
        if member is None or member.key != attestation.key:
            raise _WrongError(f"{attestation.client_id.hex()} attests, and is not a member of the roster with that key")
        yield f"{member.name} ({member.fingerprint})"


def _missing(content: Mapping[str, Any], roster: Roster) -> tuple[str, ...]:
    """The members of the roster who attest nothing; none in a simulation, where nobody does."""
    attesting = {entry["client_id"] for entry in content["ledger"]["attestations"]}
    deployed = content["kind"] == "deployment"
    return tuple(m.name for m in roster.members if deployed and m.client_id.hex() not in attesting)


def _attestations(content: Mapping[str, Any]) -> Iterator[Attestation]:
    return (Attestation.from_dict(entry) for entry in content["ledger"]["attestations"])


def _layout(content: Mapping[str, Any]) -> Layout:
    tensors = content["subject"]["tensors"]
    _require(len({t["name"] for t in tensors}) == len(tensors), "a tensor is named twice")
    return Layout(tuple(t["name"] for t in tensors), tuple(tuple(t["shape"]) for t in tensors))


def _request(content: Mapping[str, Any]) -> PrivacyRequest:
    return request_of(
        content["config"].encode("ascii"),
        population_size=content["population_size"],
        dimension=_layout(content).dimension,
    )
