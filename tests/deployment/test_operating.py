"""Beginning a run and taking a member out, as an operator sees it, without a server."""

from types import SimpleNamespace

import numpy as np
import pytest
from server_files import NAMES, new_home

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.public_data import PublicData
from fedlearn.crypto.certificates import new_node_key, node_public_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.deployment import operating
from fedlearn.deployment.runs import Runs
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import NO_NONCE, Applicant, applicant_proof, verifier_of
from fedlearn.errors import ConfigError
from fedlearn.run.checkpoint import Progress, RunFolder, load_run

NODE_KEYS = [node_public_key(new_node_key()) for _ in NAMES]


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path)


@pytest.fixture
def federation(home):
    """Four who joined; the roster is open."""
    book = Federation(home.database_path)
    for number, secret in enumerate(book.invite(NAMES, pin=home.pin, days=1)):
        key = SigningKey(bytes([number]) * 32)
        applicant = Applicant(bytes([number]) * 16, key.public, NODE_KEYS[number], "")
        verifier = verifier_of(secret, home.pin)
        proof, signature = applicant_proof(verifier, applicant, key, pin=home.pin, nonce=NO_NONCE)
        book.admit(applicant, proof, signature, pin=home.pin, nonce=NO_NONCE)
    yield book
    book.close()


def example(home):
    return home.folder / "run.example.toml"


def test_a_run_begins_over_the_closed_roster_and_waits_for_its_turn(home, federation):
    with pytest.raises(ConfigError, match="the roster is open; close it first"):
        operating.begin_run(home, example(home), [])
    roster = federation.close_roster(home.entry)
    run, plan = operating.begin_run(home, example(home), ["run.rounds=2"])
    folder = RunFolder(home.folder / "runs" / run)
    assert folder.roster().content == roster.content
    assert load_run(folder.file("config.toml")).run.rounds == 2
    assert plan.planned_cohort == 4
    assert not folder.revoked()
    (booked,) = Runs(home.database_path).all()
    progressed = operating.progress_of(home, booked)
    assert (progressed.run.state, progressed.round, progressed.rounds) == ("waiting", 0, 2)
    assert (progressed.session, progressed.name) == (None, run)


def test_a_run_has_the_name_by_which_its_holders_know_it(home, federation):
    federation.close_roster(home.entry)
    run, _ = operating.begin_run(home, example(home), [])
    folder = RunFolder(home.folder / "runs" / run)
    folder.save_checkpoint(Progress("0123456789abcdef" * 2, "now"), np.zeros(3), {})
    (booked,) = Runs(home.database_path).all()
    progressed = operating.progress_of(home, booked)
    assert progressed.name == f"{run} (session 01234567)"
    assert progressed.as_dict()["session"] == "0123456789abcdef" * 2


def test_f20_who_is_revoked_is_in_no_cohort_of_any_run(home, federation):
    federation.close_roster(home.entry)
    before, _ = operating.begin_run(home, example(home), [])
    assert operating.revoke(home, "Ben")
    after, _ = operating.begin_run(home, example(home), [])
    for run in (before, after):
        assert RunFolder(home.folder / "runs" / run).revoked() == {bytes([1]) * 16}
    assert operating.member_states(home, federation)["Ben"] == "revoked"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("secure_aggregation.masking=false", "which a simulation alone may be"),
        ("secure_aggregation.planned_cohort=5", "planned_cohort"),
        ("training.strategy_options={ wrong = 1.0 }", "wrong"),
        ("model.name=linaer", "did you mean linear"),
        ("privacy.max_grad_norm=-1", "max_grad_norm"),
    ],
)
def test_a_run_that_cannot_be_is_one_sentence_and_leaves_nothing(home, federation, change, sentence):
    federation.close_roster(home.entry)
    with pytest.raises(ConfigError, match=sentence):
        operating.begin_run(home, example(home), [change])
    assert not list((home.folder / "runs").iterdir())
    assert not Runs(home.database_path).all()


def test_f13_and_f16_a_run_without_room_is_refused_with_the_figures(home, federation, monkeypatch):
    federation.close_roster(home.entry)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(ConfigError, match=r"1\.0 GB of disk are free; the run needs 1\.0 GB: make room first"):
        operating.begin_run(home, example(home), [])
    assert not list((home.folder / "runs").iterdir())


def test_the_public_test_data_is_what_ships_a_file_or_none(home, tmp_path, load_digits):
    assert len(PublicData.load(load_digits(), population_size=10).test) == 360
    assert PublicData.load(load_digits("data.public_test=0.0"), population_size=10).test is None
    table = tmp_path / "public.csv"
    table.write_text("age,ill\n20,no\n70,yes\n")
    overrides = {
        "data.dataset": "csv",
        "data.label": "ill",
        "data.classes": [["no"], ["yes"]],
        "data.columns": {"age": {"low": 0, "high": 100}},
    }
    share = overrides | {"data.public_test": 0.2, "data.public": True}
    without = PublicData.load(RunConfig.load("digits", share), population_size=10)
    assert without.test is None
    assert without.classes == ("no", "yes")
    given = PublicData.load(RunConfig.load("digits", overrides | {"data.public_test": str(table)}), population_size=10)
    assert given.test is not None
    assert len(given.test) == 2
    assert given.plan.dimension == without.plan.dimension == 4
