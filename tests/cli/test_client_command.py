"""`fedlearn client` as a data holder types it: what is printed, and what the command ends with."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from holder_files import FOUR, entry, small_roster, write_policy

from fedlearn.config.run_config import RunConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(typed, tmp_path, monkeypatch):
    """Types a command of the client, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(typed, "client")


@pytest.fixture
def policy(tmp_path):
    return write_policy(tmp_path / "home" / "client")


def run_file(tmp_path, *overrides):
    path = tmp_path / "run.toml"
    path.write_text(RunConfig.load("digits", [*FOUR, *overrides]).to_toml())
    return path


def test_the_roster_is_shown_with_names_contacts_fingerprints_and_its_hash(run, policy):
    code, out, _ = run("roster", "show", "--policy", policy)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].endswith("Coordinator: coordinator, not confirmed")
    assert lines[1] == f"{entry(0).fingerprint}  Ada (ada@example.org): yourself"
    assert lines[2] == f"{entry(1).fingerprint}  Ben (ben@example.org): not confirmed"
    assert f"SHA-256 {small_roster().sha256.hex()}" in lines
    assert lines[-1].startswith("3 of 4 members not confirmed: Ben, Cleo, Dora; a run is refused whose max_colluders")


def test_the_home_is_given_or_in_the_environment(run, policy, tmp_path, monkeypatch):
    by_policy = run("roster", "show", "--policy", policy)
    assert run("roster", "show", "--home", tmp_path / "home") == by_policy
    monkeypatch.setenv("FEDLEARN_HOME", str(tmp_path / "home"))
    assert run("roster", "show") == by_policy
    monkeypatch.setenv("FEDLEARN_HOME", str(tmp_path / "empty"))
    assert run("roster", "show")[0] == 2
    monkeypatch.delenv("FEDLEARN_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").rename(tmp_path / ".fedlearn")
    assert run("roster", "show")[0] == 0


def test_policy_and_home_together_are_refused(run, policy, tmp_path):
    code, _, err = run("roster", "show", "--policy", policy, "--home", tmp_path)
    assert code == 2
    assert "leave one out" in err


def test_a_roster_is_compared_then_accepted(run, policy, tmp_path):
    grown = small_roster(*(entry(member) for member in range(3)))
    (tmp_path / "sent.toml").write_bytes(grown.content)
    code, out, _ = run("roster", "show", "sent.toml", "--policy", policy)
    assert code == 0
    assert out.splitlines()[-1] == "not accepted: fedlearn client roster accept"
    hash_ = grown.sha256.hex()
    words = ("roster", "accept", "sent.toml", "--sha256", hash_, "--confirmed", "Ben", "--confirmed", "Cleo")
    code, out, _ = run(*words, "--policy", policy)
    assert code == 0
    assert "0 of 3 members not confirmed\n" in out
    assert hash_ in policy.read_text()
    assert run("roster", "show", "--policy", policy)[0] == 0


def test_a_wrong_hash_is_exit_code_3_in_one_sentence(run, policy, tmp_path):
    (tmp_path / "sent.toml").write_bytes(small_roster().content)
    code, out, err = run("roster", "accept", "sent.toml", "--sha256", "0" * 64, "--policy", policy)
    assert code == 3
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "nothing was written" in err


def test_another_roster_than_the_pinned_one_is_exit_code_3(run, policy):
    (policy.parent / "roster.toml").write_bytes(small_roster(entry(0), entry(1)).content)
    assert run("roster", "show", "--policy", policy)[0] == 3


def test_a_run_that_fits_is_accepted_line_by_line(run, policy, tmp_path):
    code, out, _ = run("policy", "check", policy, run_file(tmp_path))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "data set digits"
    assert all(line.startswith(" ok ") for line in lines[1:])
    limits = ["mode", "model", "model options", "masking", "min_survivors", "max_colluders"]
    limits += ["unconfirmed members", "privacy_unit", "epsilon", "delta", "model size"]
    assert [line[9:29].strip() for line in lines[1:]] == limits
    assert "650 entries; the policy accepts at most 650" in lines[-1]


def test_what_is_refused_is_named_and_exit_code_3(run, policy, tmp_path):
    file = run_file(tmp_path, "privacy.target_epsilon=4.5", "secure_aggregation.masking=false")
    code, out, err = run("policy", "check", policy, file)
    assert code == 3
    refused = [line[9:29].strip() for line in out.splitlines() if line.startswith(" REFUSED")]
    assert refused == ["masking", "epsilon"]
    assert "2 of 11 limits refuse this run, the first: masking is false; the policy accepts true" in err


def test_json_is_one_object_in_the_last_line(run, policy, tmp_path):
    code, out, _ = run("policy", "check", policy, run_file(tmp_path, "privacy.target_epsilon=4.5"), "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 3
    assert (told["accepted"], told["dataset"]) == (False, "digits")
    epsilon = next(line for line in told["lines"] if line["limit"] == "epsilon")
    assert re.fullmatch(r"epsilon is 4\.\d+; the policy accepts at most 3.0", epsilon["reason"])
    assert [line["reason"] for line in told["lines"] if line["accepted"]] == [None] * 10


def test_a_plan_that_cannot_hold_for_this_roster_is_a_line_too(run, policy, tmp_path):
    code, out, _ = run("policy", "check", policy, run_file(tmp_path, "secure_aggregation.planned_cohort=10"))
    assert code == 3
    assert " REFUSED plan " in out


def test_a_model_that_is_not_listed_is_not_built(run, policy, tmp_path):
    (tmp_path / "traps.py").write_text("raise SystemExit('built')")
    code, out, _ = run("policy", "check", policy, run_file(tmp_path, "model.name=traps:build"))
    assert code == 3
    assert " REFUSED model " in out


def test_a_listed_model_of_ones_own_is_never_taken_from_the_runs_folder(run, tmp_path):
    policy = write_policy(tmp_path / "home" / "client", {"models": '["traps:build"]'})
    (tmp_path / "traps.py").write_text("raise SystemExit('built')")
    code, _, err = run("policy", "check", policy, run_file(tmp_path, "model.name=traps:build"))
    assert code == 2
    assert "no module" in err
    assert "state it with --dimension N" in err
    file = run_file(tmp_path, "model.name=traps:build")
    assert run("policy", "check", policy, file, "--dimension", 650)[0] == 0
    assert run("policy", "check", policy, file, "--dimension", 651)[0] == 3
    assert run("policy", "check", policy, file, "--dimension", 0)[0] == 2


def test_a_table_of_ones_own_gives_the_models_size(run, tmp_path):
    policy = write_policy(tmp_path / "home" / "client", {"source": '"rows.csv"'})
    (policy.parent / "rows.csv").write_text("a,b,label\n1,2,x\n3,4,y\n")
    file = run_file(tmp_path)
    text = file.read_text().replace('dataset = "digits"', 'dataset = "csv"\nlabel = "label"\nclasses = [["x"], ["y"]]')
    columns = "[data.columns.a]\nlow = 0\nhigh = 5\n\n[data.columns.b]\nlow = 0\nhigh = 5\n\n"
    file.write_text(text.replace("[model]", f"{columns}[model]"))
    code, _, err = run("policy", "check", policy, file)
    assert code == 3, "a table has no schema before one was accepted"
    assert "accept-schema" in err
    before = policy.read_text()
    code, out, err = run("policy", "accept-schema", file, "--policy", policy, "--sha256", "0" * 64)
    assert (code, policy.read_text()) == (3, before)
    assert "[data.columns.a]\nlow = 0.0\nhigh = 5.0" in out
    digest = re.search("schema SHA-256 ([0-9a-f]{64})", out)[1]
    code, out, err = run("policy", "accept-schema", file, "--policy", policy, "--sha256", digest)
    assert code == 0, err
    pinned = f'schema_sha256 = "{digest}"\n'
    assert policy.read_text().replace(pinned, "") == before
    assert run("policy", "accept-schema", file, "--policy", policy, "--sha256", digest)[0] == 0, "once more"
    assert policy.read_text().replace(pinned, "") == before
    code, out, err = run("policy", "check", policy, file)
    assert "6 entries" in out, err
    assert code == 0
    (policy.parent / "rows.csv").unlink()
    assert run("policy", "check", policy, file)[0] == 0, "the columns say it; the holder's file is not opened"


def test_a_broken_run_is_exit_code_2(run, policy, tmp_path):
    assert run("policy", "check", policy, tmp_path / "none.toml")[0] == 2


def commands(group, path=()):
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))
        if not hasattr(command, "commands"):
            yield " ".join((*path, name)), command


def test_every_command_and_option_is_documented():
    from typer.main import get_command

    from fedlearn.cli.client import app

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found = dict(commands(get_command(app)))
    assert {"roster show", "roster accept", "policy check", "ledger show", "ledger verify"} < set(found)
    for name, command in found.items():
        assert re.search(rf"^## `fedlearn client {name}[ `]", page, re.MULTILINE)
        for option in (option for each in command.params for option in each.opts if option.startswith("--")):
            assert f"`{option}" in page
