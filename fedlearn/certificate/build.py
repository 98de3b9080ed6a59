"""A certificate from named inputs: what a run left behind, and what its parties signed. Nothing else is stated."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedlearn.bounded import read_tensors
from fedlearn.canonical import floats_as_text
from fedlearn.certificate.attestation import Attestation, Attested, unprotected
from fedlearn.certificate.figures import guarantees_of, noise_of, releases_of_one, request_of
from fedlearn.certificate.form import TYPE, encode
from fedlearn.crypto.signatures import SigningKey
from fedlearn.model.layout import Layout, write_model
from fedlearn.privacy.request import PrivacyRequest, threshold_of

__all__ = ["NO_ROSTER", "SECURE_AGGREGATION", "Evidence", "certify", "model_bytes_of"]

NO_ROSTER = bytes(32)  # stands for the roster's hash where a simulation has none
SECURE_AGGREGATION = "fedlearn-secagg v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a certificate may speak of.

    `config` is canonical; `noise` says who drew it or what stood for it in a simulation, `noise_std` is in grid
    units, of one draw (0: none). `attempts` are the lines of events.jsonl. `head` and `entries` are those of the one
    ledger of a simulation, or of the coordinator's own account. `roster_hash` is None where masking is off. Scores are
    of public data alone. `unprotected` is what this run adds to what every certificate names.
    """

    kind: Literal["simulation", "deployment"]
    session: str
    started: str
    ended: str
    purpose: str | None
    config: bytes = field(repr=False)
    population_size: int
    noise: str
    noise_std: int
    layout: Layout
    model_file: bytes = field(repr=False)
    attempts: Sequence[Mapping[str, Any]] = field(repr=False)
    head: bytes | None
    entries: int | None
    attestations: Sequence[Attestation] = field(repr=False)
    roster_hash: bytes | None
    accuracy: float | None
    loss: float | None
    audits: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    unprotected: Sequence[str] = ()

    @property
    def request(self) -> PrivacyRequest:
        """The keys of the configuration that privacy depends on."""
        return request_of(self.config, population_size=self.population_size, dimension=self.layout.dimension)

    @property
    def releases(self) -> int:
        """The most releases of one client that nothing signed rules out."""
        return releases_of_one(
            self.request,
            kind=self.kind,
            events=[_attempt(line, secret=False) for line in self.attempts if line["event"] is not None],
            attested=[entry.releases for entry in self.attestations],
        )

    @property
    def transcripts(self) -> list[str]:
        """The transcript's hash of each sum, in order."""
        return [line["transcript"] for line in self.attempts if not line["aborted"] and line.get("transcript")]

    @property
    def masked(self) -> bool:
        """Whether every sum has a transcript of secure aggregation."""
        sums = sum(not line["aborted"] for line in self.attempts)
        return self.roster_hash is not None and 0 < sums == len(self.transcripts)

    def attested(self, *, releases: int, ledger_head: bytes, events_hash: bytes) -> Attested:
        """What a party of this run signs that booked so many releases."""
        return Attested(
            session=bytes.fromhex(self.session),
            config_hash=hashlib.sha256(self.config).digest(),
            roster_hash=self.roster_hash or NO_ROSTER,
            model_hash=hashlib.sha256(model_bytes_of(self.model_file, self.layout)).digest(),
            releases=releases,
            ledger_head=ledger_head,
            events_hash=events_hash,
        )


def certify(evidence: Evidence, key: SigningKey) -> bytes:
    """The certificate, signed by the coordinator.

    Guarantees:
        nothing in it depends on a client's number of records, but for hashes, keys, signatures, times and scores;
        without an input, what is derived from it is not stated.
    """
    request = evidence.request
    content = {
        "type": TYPE,
        "kind": evidence.kind,
        "run": {
            "session": evidence.session,
            "started": evidence.started,
            "ended": evidence.ended,
            "purpose": evidence.purpose,
        },
        "subject": _subject(evidence),
        "config": evidence.config.decode("ascii"),
        "config_hash": hashlib.sha256(evidence.config).hexdigest(),
        "population_size": evidence.population_size,
        "noise": {**noise_of(request, evidence.noise_std), "drawn": evidence.noise},
        "guarantees": guarantees_of(
            request, noise_std=evidence.noise_std, releases=evidence.releases, masked=evidence.masked
        ),
        "events": [_attempt(line, secret=request.cohorts == "poisson") for line in evidence.attempts],
        "ledger": {
            "head": evidence.head.hex() if evidence.head is not None else None,
            "entries": evidence.entries,
            "attestations": [attestation.as_dict() for attestation in evidence.attestations],
        },
        "secure_aggregation": _secure_aggregation(evidence, request),
        "unprotected": list(dict.fromkeys((*unprotected(evidence.attestations), *evidence.unprotected))),
        "audit": [floats_as_text(audit) for audit in evidence.audits],
        "scores": _scores(evidence),
        "versions": dict(evidence.versions),
    }
    return encode(content, key)


def model_bytes_of(model_file: bytes, layout: Layout) -> bytes:
    """Canonical bytes of the model in a safetensors file: those that every round sent, and that `model_hash` is of.

    Raises:
        ConfigError: it is no safetensors file.
        ValueError: the file does not hold exactly the tensors of the layout.
    """
    tensors = read_tensors(model_file, what="the model file")
    if {name: values.shape for name, values in tensors.items()} != dict(zip(layout.names, layout.shapes, strict=True)):
        raise ValueError("the file has other tensors than the certified model")
    return write_model(layout.join(tensors), layout)


def _subject(evidence: Evidence) -> dict[str, Any]:
    layout = evidence.layout
    return {
        "model_hash": hashlib.sha256(model_bytes_of(evidence.model_file, layout)).hexdigest(),
        "file_sha256": hashlib.sha256(evidence.model_file).hexdigest(),
        "tensors": [
            {"name": name, "shape": list(shape)} for name, shape in zip(layout.names, layout.shapes, strict=True)
        ],
    }


def _attempt(line: Mapping[str, Any], *, secret: bool) -> dict[str, Any]:
    """An attempt as executed. How many were asked is secret where the guarantee rests on secret cohorts."""
    return {
        "round": line["round"],
        "attempt": line["attempt"],
        "asked": None if secret else line["asked"],
        "survived": None if secret else line["survivors"],
        "aborted": line["aborted"],
        "event": line["event"],
    }


def _secure_aggregation(evidence: Evidence, request: PrivacyRequest) -> dict[str, Any] | None:
    if evidence.roster_hash is None or not evidence.masked:
        return None
    return {
        "version": SECURE_AGGREGATION,
        "planned_cohort": request.planned_cohort,
        "threshold": threshold_of(request.planned_cohort),
        "min_survivors": request.min_survivors,
        "max_colluders": request.max_colluders or 0,
        "roster_hash": evidence.roster_hash.hex(),
        "transcripts": evidence.transcripts,
    }


def _scores(evidence: Evidence) -> dict[str, Any] | None:
    if evidence.accuracy is None:
        return None
    known = evidence.loss is not None and math.isfinite(evidence.loss)
    return {"accuracy": f"{evidence.accuracy:.6f}", "loss": f"{evidence.loss:.6f}" if known else None}
