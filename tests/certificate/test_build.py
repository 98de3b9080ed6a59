"""A certificate states what its inputs give and nothing else; and nothing of how many records a client has."""

import json
from dataclasses import replace

import pytest
from safetensors.numpy import load, save

from fedlearn import RunConfig, simulate
from fedlearn.canonical import canonical_json
from fedlearn.certificate.attestation import Attestation
from fedlearn.certificate.build import Evidence, certify
from fedlearn.certificate.figures import booked_event, guarantees_of, releases_of_one, request_of
from fedlearn.certificate.form import encode
from fedlearn.certificate.verify import verify_certificate
from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.crypto.signatures import SigningKey
from fedlearn.ledger.rows import events_hash
from fedlearn.model.vector import layout_of
from fedlearn.policy.roster import Roster, RosterEntry
from fedlearn.privacy.calibration import guarantees_after
from fedlearn.run.checkpoint import RunFolder
from fedlearn.simulation.simulated import coordinator_key

PATIENTS = """
[run]
rounds = 2
spare_rounds = 0
[data]
dataset = "csv"
path = "patients.csv"
label = "ill"
classes = [["no"], ["yes"]]
client_column = "site"
partition = "natural"
[data.columns.age]
low = 0
high = 100
[model]
name = "linear"
[training]
learning_rate = 4.0
strategy = "FedAvg"
[privacy]
mode = "record-distributed"
target_epsilon = 5.0
delta = 1e-4
max_grad_norm = 0.5
clipping_norm = 50.0
sampling_probability = "1"
planned_records = 400
max_participations = 2
[secure_aggregation]
masking = true
cohorts = "rotation"
planned_cohort = 4
min_survivors = 4
max_colluders = 1
scale_bits = 16
"""


@pytest.fixture
def evidence(finished_run, certificate, model_file):
    """What the run left behind, gathered by hand."""
    content, folder = json.loads(certificate), RunFolder(finished_run)
    config = RunConfig.load(finished_run / "config.toml")
    return Evidence(
        kind="simulation",
        session=content["run"]["session"],
        started=content["run"]["started"],
        ended=content["run"]["ended"],
        purpose="digits",
        config=config.to_bytes(),
        population_size=10,
        noise="shares",
        noise_std=content["noise"]["std"],
        layout=layout_of(load_simulated_data(config).build_model(config)),
        model_file=model_file,
        attempts=folder.lines("events.jsonl"),
        head=bytes.fromhex(content["ledger"]["head"]),
        entries=content["ledger"]["entries"],
        attestations=[Attestation.from_dict(entry) for entry in content["ledger"]["attestations"]],
        roster_hash=folder.roster().sha256,
        accuracy=float(content["scores"]["accuracy"]),
        loss=float(content["scores"]["loss"]),
        audits=[{"format": "fedlearn/v1/audit", "kind": "mechanism", "epsilon_lower": 1.5}],
        unprotected=("the weather",),
        versions=content["versions"],
    )


def content_of(evidence, finished_run):
    return json.loads(certify(evidence, coordinator_key(finished_run)))


def test_the_same_inputs_give_the_same_certificate(evidence, finished_run, certificate):
    again = certify(
        replace(evidence, purpose=json.loads(certificate)["run"]["purpose"], audits=(), unprotected=()),
        coordinator_key(finished_run),
    )
    assert again == certificate


@pytest.mark.parametrize(
    ("removed", "empty", "statements"),
    [
        ("attempts", (), {"events", "guarantees", "secure_aggregation"}),
        ("attestations", (), {"ledger"}),
        ("head", None, {"ledger"}),
        ("entries", None, {"ledger"}),
        ("roster_hash", None, {"secure_aggregation", "guarantees"}),
        ("accuracy", None, {"scores"}),
        ("loss", None, {"scores"}),
        ("audits", (), {"audit"}),
        ("unprotected", (), {"unprotected"}),
        ("versions", {}, {"versions"}),
        ("purpose", None, {"run"}),
    ],
)
def test_without_an_input_its_statement_goes_and_no_other(evidence, finished_run, removed, empty, statements):
    whole = content_of(evidence, finished_run)
    left = content_of(replace(evidence, **{removed: empty}), finished_run)
    changed = {name for name in whole if whole[name] != left[name]} - {"coordinator"}
    assert changed == statements
    assert all(_stated(left[name]) < _stated(whole[name]) for name in statements)


def _stated(content):
    """How many values are there."""
    if isinstance(content, dict):
        return sum(map(_stated, content.values()))
    return sum(map(_stated, content)) if isinstance(content, list) else content is not None


def test_without_transcripts_nothing_is_claimed_against_the_server(evidence, finished_run):
    lines = [{**line, "transcript": None} for line in evidence.attempts]
    left = content_of(replace(evidence, attempts=lines), finished_run)
    assert left["secure_aggregation"] is None
    assert not any("server" in against for against in left["guarantees"][0]["holds_against"])
    assert "unmasked" in {assumption["id"] for assumption in left["guarantees"][0]["assumptions"]}


def test_an_audit_stands_in_it_without_a_float(evidence, finished_run):
    assert content_of(evidence, finished_run)["audit"][0]["epsilon_lower"] == "1.5"


MODES = [
    ("privacy.mode=record-distributed", "secure_aggregation.masking=true"),
    ("privacy.mode=record-local", "secure_aggregation.masking=false", "privacy.sampling_probability=1/3"),
    ("privacy.mode=client-distributed", "secure_aggregation.masking=true", "privacy.target_epsilon=50"),
    ("privacy.mode=client-central", "secure_aggregation.masking=false", "privacy.target_epsilon=50"),
]


@pytest.mark.lengthy
@pytest.mark.parametrize("overrides", MODES, ids=lambda overrides: overrides[0].partition("=")[2])
def test_figures_from_bytes_are_those_of_the_plan(load_digits, overrides):
    config = load_digits("run.rounds=3", "run.spare_rounds=1", *overrides)
    data = load_simulated_data(config)
    plan = data.plan
    noise_std = plan.noise_std
    request = request_of(config.to_bytes(), population_size=10, dimension=plan.dimension)
    assert plan.event is not None
    assert booked_event(request, noise_std) == plan.event.as_dict()
    masked = config.secure_aggregation.masking
    told = guarantees_of(request, noise_std=noise_std, releases=3, masked=masked)
    for entry, expected in zip(told, guarantees_after(plan, 3), strict=True):
        assert float(entry["epsilon"]) == pytest.approx(expected.epsilon, abs=1.1e-6)
        assert float(entry["epsilon"]) >= expected.epsilon
        assert entry["holds_against"] == list(expected.holds_against)
        assert [known["text"] for known in entry["assumptions"]] == list(expected.assumptions)
        assert (entry["epsilon_if_masking_fails"] is None) == (expected.epsilon_if_masking_fails is None)


@pytest.mark.lengthy
def test_secret_cohorts_stay_secret_and_the_ledger_is_the_coordinators(load_digits, tmp_path):
    overrides = [
        "privacy.mode=client-central",
        "secure_aggregation.masking=false",
        "secure_aggregation.cohorts=poisson",
    ]
    sizes = ["secure_aggregation.planned_cohort=5", "secure_aggregation.min_survivors=4", "privacy.target_epsilon=5"]
    run = simulate(
        load_digits("run.rounds=3", "run.spare_rounds=0", *overrides, *sizes), output=tmp_path / "run"
    ).run_dir
    body = (run / "certificate.json").read_bytes()
    content = json.loads(body)
    assert {(line["asked"], line["survived"]) for line in content["events"]} == {(None, None)}
    assert content["ledger"]["entries"] == 6
    assert content["ledger"]["attestations"][0]["releases"] == 3
    assert [len(content["guarantees"]), content["secure_aggregation"]] == [2, None]
    assert verify_certificate(body, (run / "model.safetensors").read_bytes()).passed


def test_mode_none_is_certified_as_not_private(load_digits, tmp_path):
    run = simulate(load_digits("run.rounds=2", "privacy.mode=none"), output=tmp_path / "run").run_dir
    body = (run / "certificate.json").read_bytes()
    content = json.loads(body)
    assert (content["guarantees"], content["ledger"]["entries"]) == ([], 0)
    verification = verify_certificate(body, (run / "model.safetensors").read_bytes())
    assert verification.passed, verification.checks
    assert "NOT PRIVATE" in {check.name: check.detail for check in verification.checks}["guarantees"]


def _patients(folder, records_of_the_first):
    rows = [f"a,{20 + n % 60},{'yes' if n % 60 > 30 else 'no'}" for n in range(records_of_the_first)]
    rows += [f"{site},{20 + n % 60},{'yes' if n % 60 > 30 else 'no'}" for site in "bcd" for n in range(100)]
    folder.mkdir()
    (folder / "patients.csv").write_text("\n".join(["site,age,ill", *rows]) + "\n")
    (folder / "patients.toml").write_text(PATIENTS)
    return RunConfig.load(folder / "patients.toml")


def _without_what_is_fresh(content):
    """All but hashes, keys, signatures, times and scores."""
    if isinstance(content, list):
        return [_without_what_is_fresh(item) for item in content]
    if isinstance(content, dict):
        fresh = {
            "key",
            "signature",
            "session",
            "started",
            "ended",
            "model_hash",
            "file_sha256",
            "roster_hash",
            "scores",
        }
        fresh |= {"transcripts", "head", "ledger_head", "dataset_tag"}
        return {name: _without_what_is_fresh(item) for name, item in content.items() if name not in fresh}
    return content


def test_a_certificate_does_not_tell_how_many_records_a_client_has(tmp_path):
    told = []
    for many in (20, 170):
        run = simulate(_patients(tmp_path / str(many), many), output=tmp_path / f"run-{many}").run_dir
        told.append(json.loads((run / "certificate.json").read_bytes()))
    assert _without_what_is_fresh(told[0]) == _without_what_is_fresh(told[1])
    assert len(json.dumps(told[0])) == len(json.dumps(told[1]))
    assert told[0]["subject"]["model_hash"] != told[1]["subject"]["model_hash"]


KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 12)]  # a coordinator and ten members


@pytest.fixture
def deployed(evidence):
    """The same run as if ten holders had signed for their own ledgers, and its roster."""
    entries = [RosterEntry(f"holder {n}", "", bytes([n]) * 16, key.public) for n, key in enumerate(KEYS)]
    roster = Roster.of(entries[0], tuple(entries[1:]))
    known = replace(evidence, kind="deployment", head=None, entries=None, roster_hash=roster.sha256)
    attestations = [_attestation(known, number) for number in range(1, 11)]
    return replace(known, attestations=attestations), roster


def _attestation(evidence, number, releases=3, key=None, events=None):
    booked = {canonical_json(line["event"]) for line in evidence.attempts} if events is None else events
    return Attestation.sign(
        evidence.attested(releases=releases, ledger_head=bytes([number]) * 32, events_hash=events_hash(booked)),
        key or KEYS[number],
        client_id=bytes([number]) * 16,
        dataset_id="patients",
        entries=2 * releases,
        unconfirmed=1,
        unconfirmed_members=1,
    )


def _louder(evidence):
    return canonical_json({**evidence.attempts[0]["event"], "noise_multiplier": "0.500000"})


def _failed(evidence, roster):
    verification = verify_certificate(certify(evidence, KEYS[0]), evidence.model_file, roster)
    return {check.name for check in verification.checks if not check.passed}, verification


def test_a_deployment_is_signed_by_every_holder_that_attests(deployed):
    failed, verification = _failed(*deployed)
    assert failed == set()
    assert [name.partition(" (")[0] for name in verification.signers] == [f"holder {n}" for n in range(11)]
    content = json.loads(certify(deployed[0], KEYS[0]))
    guarantee = content["guarantees"][0]
    assert guarantee["releases"] == 3
    assert float(guarantee["epsilon"]) < float(guarantee["epsilon_planned"])


def test_while_anybody_is_missing_the_releases_of_the_plan_are_stated(deployed):
    """A coordinator leaves out who was asked most, or an attempt that only the missing one knows of."""
    evidence, roster = deployed
    certificate = certify(replace(evidence, attestations=evidence.attestations[1:]), KEYS[0])
    guarantee = json.loads(certificate)["guarantees"][0]
    assert (guarantee["releases"], guarantee["epsilon"]) == (4, guarantee["epsilon_planned"])
    verification = verify_certificate(certificate, evidence.model_file, roster)
    assert verification.passed
    assert any("1 are missing" in check.detail for check in verification.checks)
    assert verification.verdict.endswith("NOT attested by holder 1: the planned releases are stated")
    honest = json.loads(certify(evidence, KEYS[0]))
    honest["ledger"]["attestations"].pop()
    forged = encode({name: part for name, part in honest.items() if name != "coordinator"}, KEYS[0])
    for known in (None, roster):
        failed = [c.name for c in verify_certificate(forged, evidence.model_file, known).checks if not c.passed]
        assert failed == ["guarantees"]


def test_who_was_asked_more_often_than_a_rotation_asks_is_counted(deployed):
    request = deployed[0].request
    few = {"kind": "deployment", "events": [{"survived": 3, "aborted": False}] * 8}
    assert releases_of_one(request, **few, attested=[8] + [2] * 9) == 8
    assert releases_of_one(request, **few, attested=[0] * 10) == 3  # somebody sent those 24 vectors
    assert releases_of_one(request, **few, attested=[8] + [2] * 8) == 4


def test_another_population_than_the_rosters_is_refused(deployed):
    evidence, roster = deployed
    failed, _ = _failed(replace(evidence, population_size=1000, attestations=()), roster)
    assert failed == {"roster"}
    alone = verify_certificate(certify(replace(evidence, population_size=11), KEYS[0]), evidence.model_file)
    assert "population_size" in alone.as_dict()["cannot_show"][-1]
    assert "(--roster)" in alone.cannot_show[-1]


def test_a_deployment_that_nobody_attests_or_without_masks_is_refused(deployed):
    evidence, roster = deployed
    assert _failed(replace(evidence, attestations=()), roster)[0] == {"roster"}
    bare = certify(replace(evidence, attestations=(), roster_hash=None), KEYS[0])
    verification = verify_certificate(bare, evidence.model_file)
    assert [check.name for check in verification.checks if not check.passed] == ["secure aggregation"]


@pytest.mark.parametrize(
    ("forge", "noticed"),
    [
        (lambda e: [_attestation(e, 1, releases=4)], {"ledger"}),  # more than the events say
        (lambda e: [replace(_attestation(e, 1), releases=1)], {"ledger"}),
        (lambda e: [_attestation(e, 1, events=[_louder(e)])], {"ledger"}),  # what its ledger has is another event
        (lambda e: [_attestation(e, 1, events=[_louder(e), canonical_json(e.attempts[0]["event"])])], {"ledger"}),
        (lambda e: [_attestation(replace(e, session="00" * 16), 1)], {"ledger"}),
        (lambda e: [_attestation(replace(e, model_file=_another_model(e)), 1)], {"ledger"}),
        (lambda e: [_attestation(e, 1), _attestation(e, 1)], {"ledger"}),
        (lambda e: [_attestation(e, 1), replace(_attestation(e, 2, key=KEYS[1]))], {"ledger", "roster"}),
        (lambda e: [_attestation(e, 1, key=SigningKey(bytes(32)))], {"roster"}),
        (lambda e: [_attestation(e, 1, key=KEYS[0])], {"ledger", "roster"}),
    ],
    ids=[
        "too-many",
        "changed",
        "other-event",
        "two-events",
        "session",
        "model",
        "twice",
        "one-key-for-two",
        "stranger",
        "coordinator",
    ],
)
def test_an_attestation_that_is_not_its_holders_is_refused(deployed, forge, noticed):
    evidence, roster = deployed
    assert _failed(replace(evidence, attestations=forge(evidence)), roster)[0] == noticed


def test_who_let_the_coordinators_code_run_as_the_owner_of_its_records_is_counted_in_the_certificate(deployed):
    evidence, roster = deployed
    shared = [replace(entry, same_user=entry is not evidence.attestations[0]) for entry in evidence.attestations]
    certificate = certify(replace(evidence, attestations=shared), KEYS[0])
    told = json.loads(certificate)
    assert [entry["same_user"] for entry in told["ledger"]["attestations"]] == [False] + [True] * 9
    (sentence,) = [line for line in told["unprotected"] if "--same-user" in line]
    assert sentence.startswith("records and keys of 9 data holders from the coordinator's code")
    verification = verify_certificate(certificate, evidence.model_file, roster)
    assert verification.passed
    assert sentence in next(check.detail for check in verification.checks if check.name == "ledger")
    assert not [line for line in json.loads(certify(evidence, KEYS[0]))["unprotected"] if "--same-user" in line]


def test_a_certificate_that_hides_it_is_refused(deployed):
    evidence, roster = deployed
    shared = [replace(entry, same_user=True) for entry in evidence.attestations]
    content = json.loads(certify(replace(evidence, attestations=shared), KEYS[0]))
    content["unprotected"] = [line for line in content["unprotected"] if "--same-user" not in line]
    verification = verify_certificate(encode(content, KEYS[0]), evidence.model_file, roster)
    assert {check.name for check in verification.checks if not check.passed} == {"ledger"}


def _another_model(evidence):
    tensors = load(evidence.model_file)
    return save({name: values + 1 for name, values in tensors.items()})
