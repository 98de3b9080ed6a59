"""`fedlearn client ledger` as a data holder types it: what is printed, what it ends with, and that nothing changes."""

import hashlib
import json
import math
import shutil
import sqlite3
from functools import partial

import pytest

from fedlearn.ledger import Ledger, Reservation
from fedlearn.privacy.guarantee import PrivacyUnit

EVENT = b'{"count":1,"eta":"0","mechanism":"gaussian","noise_multiplier":"8.000000","sampling_probability":"1"}'


@pytest.fixture
def run(typed):
    return partial(typed, "client", "ledger")


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "home" / "client"
    folder.mkdir(parents=True)
    ledger = Ledger(folder / "ledger.db")
    ledger.open_dataset("ward", privacy_unit=PrivacyUnit.RECORD, max_epsilon=3.0, max_delta=1e-5, order=None)
    for session, releases in (("aa", 3), ("bb", 2)):
        for number in range(releases):
            ledger.release(ledger.reserve([a_release(session, number)]))
    ledger.reserve([a_release("bb", 2)])
    ledger.close()
    return folder / "ledger.db"


def a_release(session, number):
    return Reservation(dataset_id="ward", session=session, round=number, attempt=0, event=EVENT, max_releases=9)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_show_tells_budget_spent_estimate_and_releases_by_session(run, path):
    code, out, _ = run("show", "--ledger", path)
    assert code == 0
    spent, best = (math.ceil(epsilon * 10**4) / 10**4 for epsilon in Ledger(path).spent("ward"))
    assert "data set ward\n budget    epsilon 3 at delta 1e-05 for one record\n" in out
    assert f" spent     epsilon {spent:g} of these\n" in out
    assert f" estimate  epsilon {best:g}, at the best order" in out
    assert " releases  5; 1 more reserved, which count as spent\n" in out
    assert "3 in session aa\n" in out
    assert "2 in session bb\n" in out


def test_show_in_json_never_shows_less_than_is_spent(run, path):
    told = json.loads(run("show", "--ledger", path, "--json")[1].splitlines()[-1])
    (account,) = told["datasets"]
    spent, best = Ledger(path).spent("ward")
    assert spent <= account["spent"] < spent + 2e-6
    assert best <= account["estimate"] < best + 2e-6
    assert (account["releases"], account["reserved"], told["entries"]) == ({"aa": 3, "bb": 2}, 1, 12)


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_who_looks_changes_nothing_also_while_the_ledger_is_open_or_its_process_died(run, path, tmp_path, command):
    before = contents(path.parent)
    assert run(command, "--ledger", path)[0] == 0
    assert contents(path.parent) == before
    writer = Ledger(path)
    writer.reserve([a_release("cc", 0)])
    died = tmp_path / "died"
    shutil.copytree(path.parent, died)  # what a kill -9 leaves: the last rows are in the journal alone
    for folder in (path.parent, died):
        before = contents(folder)
        code, out, _ = run(command, "--ledger", folder / "ledger.db", "--json")
        assert code == 0
        assert ("13" in out) if command != "export" else len(out.splitlines()) == 13
        assert {name: before[name] for name in before if "shm" not in name}.items() <= contents(folder).items()
    assert set(contents(path.parent)) == set(before)


def test_the_ledger_of_the_home_is_meant_unless_a_file_is_named(run, path, tmp_path, monkeypatch):
    named = run("verify", "--ledger", path)
    assert named[0] == 0
    assert run("verify", "--home", tmp_path / "home") == named
    monkeypatch.setenv("FEDLEARN_HOME", str(tmp_path / "home"))
    assert run("verify") == named
    code, _, err = run("verify", "--home", tmp_path, "--ledger", path)
    assert code == 2
    assert "leave one out" in err


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_changed_row_is_exit_code_1_in_one_sentence(run, path, command):
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER entries_no_update")
        database.execute("UPDATE entries SET body = CAST(replace(body, '8.0', '9.0') AS BLOB) WHERE seq = 4")
    database.close()
    code, out, err = run(command, "--ledger", path)
    assert code == 1
    assert out == ""
    assert err.splitlines() == [f"fedlearn: {path}: row 4 of the ledger is not what was written"]


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_an_older_copy_is_exit_code_1_and_a_copy_for_an_auditor_is_not(run, path, tmp_path, command):
    shutil.copy(path, tmp_path / "older.db")
    ledger = Ledger(path)
    ledger.reserve([a_release("bb", 3)])
    ledger.close()
    assert run(command, "--ledger", tmp_path / "older.db")[0] == 0
    shutil.copy(tmp_path / "older.db", path)
    code, out, err = run(command, "--ledger", path)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "older copy, with 12 of the 13 rows" in err


def test_verify_says_whether_missing_rows_would_show(run, path, tmp_path):
    shutil.copy(path, tmp_path / "alone.db")
    assert "cannot be seen" not in run("verify", "--ledger", path)[1]
    assert "no count beside it" in run("verify", "--ledger", tmp_path / "alone.db")[1]
    told = [json.loads(run("verify", "--json", "--ledger", file)[1]) for file in (path, tmp_path / "alone.db")]
    assert [(each["consistent"], each["counted"]) for each in told] == [(True, 12), (True, None)]


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_file_that_is_missing_or_no_ledger_is_exit_code_2_and_nothing_is_made(run, tmp_path, command):
    (tmp_path / "letter.db").write_text("dear grandmother, " * 100)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    database.close()
    before = contents(tmp_path)
    for name in ("none.db", "letter.db", "other.db", "."):
        code, out, err = run(command, "--ledger", tmp_path / name)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert contents(tmp_path) == before


def test_an_export_is_enough_to_check_the_chain_again(run, path):
    rows = [json.loads(line) for line in run("export", "--ledger", path)[1].splitlines()]
    assert [row["kind"] for row in rows] == ["budget", *["reserve", "release"] * 5, "reserve"]
    head = bytes(32)
    for row in rows:
        numbers = [row[name].to_bytes(8, "big") for name in ("seq", "reservation", "round", "attempt")]
        names = [row[name].encode() for name in ("dataset_id", "kind", "session", "body")]
        parts = [b"fedlearn/ledger/v1/row", head, *numbers, *names]
        assert row["prev_hash"] == head.hex()
        head = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
        assert row["hash"] == head.hex()


def test_confirm_is_written_down_once_for_all_and_shown(run, path):
    assert json.loads(run("show", "--json", "--ledger", path)[1])["datasets"][0]["confirmed"] is False
    code, out, _ = run("confirm", "ward", "--ledger", path)
    assert (code, out) == (0, "data set ward is confirmed; what its people may lose is the sum over all its ids\n")
    assert json.loads(run("show", "--json", "--ledger", path)[1])["datasets"][0]["confirmed"] is True
    assert json.loads(run("export", "--ledger", path)[1].splitlines()[-1])["kind"] == "confirm"


def test_confirming_what_the_ledger_does_not_know_is_exit_code_2_and_makes_nothing(run, path, tmp_path):
    before = contents(path.parent)
    code, _, err = run("confirm", "wart", "--ledger", path)
    assert (code, "it has ward" in err) == (2, True)
    assert run("confirm", "ward", "--ledger", tmp_path / "none.db")[0] == 2
    assert not (tmp_path / "none.db").exists()
    assert contents(path.parent) == before


def test_an_empty_ledger_has_nothing_to_show(run, tmp_path):
    Ledger(tmp_path / "ledger.db").close()
    assert run("show", "--ledger", tmp_path / "ledger.db")[1] == "no data set has a budget yet\n"
    assert run("export", "--ledger", tmp_path / "ledger.db")[:2] == (0, "")
