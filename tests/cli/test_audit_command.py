"""`fedlearn audit` as a user types it: what stands on stdout, in the folder, and in the exit code."""

import json

import pytest
from dishonest_parties import NoNoise

from fedlearn.audit import mechanism

KEYS = {"kind", "epsilon_lower", "epsilon_claimed", "epsilon_booked", "confidence", "passed", "samples"}


@pytest.fixture
def run(typed, tmp_path, monkeypatch):
    """Types a command, in an empty folder, and audits with few samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mechanism.audit_mechanism.__kwdefaults__, "samples", 1_000)
    monkeypatch.setitem(mechanism.audit_mechanism.__kwdefaults__, "engine", False)
    return typed


def test_mechanism_prints_one_object_and_keeps_it(run, tmp_path):
    code, out, err = run("audit", "mechanism", "--json", "--output", tmp_path / "kept")
    told = json.loads(out)
    assert code == 0
    assert set(told) > KEYS
    assert told["passed"]
    assert told["epsilon_lower"] <= told["epsilon_claimed"] < told["epsilon_booked"]
    assert "passed" in err
    kept = json.loads((tmp_path / "kept" / "audit.json").read_bytes())
    assert kept == {"format": "fedlearn/v1/audit", "audits": [told]}


def test_more_proven_than_claimed_ends_with_one(run, monkeypatch):
    monkeypatch.setitem(mechanism.audit_mechanism.__kwdefaults__, "parties", NoNoise)
    code, out, err = run("audit", "mechanism", "--json")
    assert code == 1
    assert not json.loads(out)["passed"]
    assert "less noisy than booked" in err.splitlines()[-1]


@pytest.mark.lengthy
def test_the_folder_of_a_run_gets_the_audit_of_that_run_and_nothing_else(run, tmp_path):
    short = ("--set", "run.rounds=2", "--set", "privacy.delta=1e-4")
    assert run("simulate", *short, "--output", "r")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    code, out, _ = run("audit", "mechanism", "--json", "--output", "r")
    after = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    assert code == 0
    assert json.loads(out)["delta"] == 1e-4
    assert after.pop("audit.json")
    assert after == before
    code, _, err = run("audit", "mechanism", "digits", "--output", "r")
    assert (code, "of another configuration" in err) == (2, True)


def test_a_folder_holds_audits_of_one_run(run):
    assert run("audit", "mechanism", "--output", "kept")[0] == 0
    code, _, err = run("audit", "mechanism", "--set", "privacy.delta=1e-4", "--output", "kept")
    assert (code, "holds the audit mechanism of another configuration" in err) == (2, True)


@pytest.mark.slow
def test_inversion_keeps_a_picture_that_the_report_shows(run, tmp_path):
    assert run("simulate", "--set", "run.rounds=1", "--output", "r")[0] == 0
    code, out, _ = run("audit", "inversion", "--json", "--output", "r")
    told = json.loads(out)
    assert (code, told["kind"], told["passed"]) == (0, "inversion", True)
    assert (tmp_path / "r" / told["picture"]).read_bytes().startswith(b"\x89PNG")
    assert run("report", "r")[0] == 0
    assert '<img src="data:image/png' in (tmp_path / "r" / "report.html").read_text()


def test_an_audit_file_that_is_none_is_left_alone(run, tmp_path):
    (tmp_path / "audit.json").write_text("[]")
    code, _, err = run("audit", "mechanism", "--output", ".")
    assert (code, "expected audits" in err) == (2, True)
    assert (tmp_path / "audit.json").read_text() == "[]"


def test_what_claims_nothing_is_not_audited(run, tmp_path):
    code, _, err = run("audit", "mechanism", "--set", "privacy.mode=none", "--output", tmp_path / "new")
    assert (code, "claims nothing" in err) == (2, True)
    assert not (tmp_path / "new").exists()
