"""`fedlearn simulate`, `plan` and `report` as a user types them: what stands on stdout, on stderr and in the folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.host.shipped import scenario_names, scenario_path
from fedlearn.run.checkpoint import RunFolder

# Of the object that `simulate --json` prints.
KEYS = {
    "local_work_failed",
    "unusable_rows",
    "accuracy",
    "guarantees",
    "masking",
    "noise",
    "private",
    "rounds",
    "seconds_per_round",
    "run_dir",
}
GUARANTEE_KEYS = {
    *("privacy_unit", "epsilon", "delta", "neighboring_relation", "holds_against"),
    *("mechanism", "accountant", "assumptions", "epsilon_estimate", "epsilon_if_masking_fails"),
}
# Of every run folder (docs/commands.md).
FILES = {
    "config.toml",
    "metrics.jsonl",
    "events.jsonl",
    "model.safetensors",
    "summary.json",
    "report.html",
    "ledger.db",
}
SHORT = ("--set", "run.rounds=3", "--set", "run.spare_rounds=1")


Run = Callable[..., Any]


@pytest.fixture
def run(typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Types a command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return typed


def only_object(out: str) -> dict[str, Any]:
    """The one line on stdout, read as JSON."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    read = json.loads(out)
    assert isinstance(read, dict)
    return read


# ---------------------------------------------------------------- simulate


def test_a_run_that_is_meant_for_holders_is_planned_by_its_schema(run: Run, tmp_path: Path) -> None:
    keys = ("data.dataset=csv", "data.label=y", 'data.classes=[["0"], ["1"]]', "data.columns.a={low=0, high=5}")
    schema = [word for key in (*keys, "data.public_test=nowhere.csv") for word in ("--set", key)]
    told = only_object(run("plan", "digits", *schema, "--json").out)
    assert (told["dimension"], told["refusals"]) == (4, [])
    (tmp_path / "table.csv").write_text("a,y\n" + "1,0\n2,1\n" * 100)
    read = [word for key in (*keys, "data.path=table.csv") for word in ("--set", key)]
    assert only_object(run("plan", "digits", *read, "--json").out) == told


IN_VAIN = {
    "record-distributed": ("training.batch_size=7", "training.local_steps=9"),
    "record-local": ("training.batch_size=7",),
    "client-distributed": ("privacy.max_grad_norm=1.5", "privacy.planned_records=7"),
    "client-central": ("privacy.max_grad_norm=1.5", "privacy.planned_records=7"),
    "none": ("privacy.delta=1e-7", "privacy.max_participations=33", "privacy.target_epsilon=2.0"),
}


@pytest.mark.parametrize("mode", IN_VAIN)
def test_what_a_user_states_in_vain_is_told_and_changes_nothing(run: Run, mode: str) -> None:
    keys = (f"privacy.mode={mode}", "secure_aggregation.masking=false", "secure_aggregation.scale_bits=16")
    chosen = ("plan", "digits", "--json", *(word for key in keys for word in ("--set", key)))
    without = only_object(run(*chosen).out)
    told = only_object(run(*chosen, *(word for key in IN_VAIN[mode] for word in ("--set", key))).out)
    vain = ", ".join(key.partition("=")[0] for key in IN_VAIN[mode])
    have = "have" if "," in vain else "has"
    assert told["warnings"] == [*without["warnings"], f'{vain} {have} no effect in mode "{mode}"']
    assert told["refusals"] == []
    assert {**told, "warnings": 0} == {**without, "warnings": 0}


def test_of_keys_in_vain_a_users_own_file_is_told_and_a_shipped_one_is_not(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_bytes(scenario_path("digits").read_bytes())
    note = 'training.batch_size, training.local_steps have no effect in mode "record-distributed"'
    assert f"note: {note}" in run("plan", own).out
    assert f"Note: {note}" in run("simulate", own, *SHORT).err
    assert "no effect" not in run("plan", "digits").out
    assert "no effect" not in run("simulate", "digits", *SHORT).err


def test_json_is_one_object_with_all_its_keys(run: Run, tmp_path: Path) -> None:
    told = run("simulate", *SHORT, "--json")
    assert told.code == 0
    result = only_object(told.out)
    assert set(result) == KEYS
    assert result["rounds"] == 3
    assert result["private"] is True
    assert result["masking"] is True
    assert 0 < result["accuracy"] <= 1
    assert result["guarantees"]
    for guarantee in result["guarantees"]:
        assert set(guarantee) == GUARANTEE_KEYS
        assert guarantee["epsilon"] == round(guarantee["epsilon"], 6) <= 3
    folder = tmp_path / result["run_dir"]
    assert folder.parent == tmp_path / "runs"
    assert folder.name.endswith("-digits")
    assert {path.name for path in folder.iterdir()} >= FILES


def test_sentences_go_to_stderr_with_unit_relation_delta_and_against_whom(run: Run) -> None:
    told = run("simulate", *SHORT, "--output", "out")
    assert told.out == ""
    assert "after 3 rounds" in told.err
    assert "at delta 1e-05 for one record added or removed, against" in told.err
    assert "the server and up to 1 roster member" in told.err
    assert "If masks fail, to who sees a single vector: epsilon " in told.err
    assert "Run folder: out (open out/report.html)" in told.err
    assert "\x1b" not in told.err  # quiet where there is no terminal


def test_without_masks_no_guarantee_names_the_server(run: Run) -> None:
    told = run("simulate", *SHORT, "--set", "secure_aggregation.masking=false", "--json")
    result = only_object(told.out)
    assert result["masking"] is False
    assert not any("server" in party for guarantee in result["guarantees"] for party in guarantee["holds_against"])
    assert "The server, for masking is false and it sees each vector: epsilon " in told.err


def test_a_run_without_noise_says_so_everywhere(run: Run, tmp_path: Path) -> None:
    told = run("simulate", *SHORT, "--set", "privacy.mode=none", "--output", "out", "--json")
    result = only_object(told.out)
    assert result["private"] is False
    assert result["guarantees"] == []
    assert result["noise"] == "nobody"
    assert "NOT PRIVATE" in told.err
    assert "NOT PRIVATE" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.lengthy
def test_an_epsilon_above_ten_is_called_weak(run: Run) -> None:
    weak = ("--set", "privacy.target_epsilon=20")
    assert "(weak: above 10)" in run("simulate", *SHORT, *weak).err
    assert "(weak: above 10)" in run("plan", "digits", *weak).out


def test_the_run_folder_holds_the_run_as_it_was_asked_for(run: Run, tmp_path: Path) -> None:
    result = only_object(run("simulate", *SHORT, "--output", "out", "--json").out)
    folder = tmp_path / "out"
    assert result["run_dir"] == "out"
    again = only_object(run("plan", folder / "config.toml", "--json").out)
    first = only_object(run("plan", "digits", *SHORT, "--json").out)
    del again["warnings"], first["warnings"]  # a shipped scenario is silent where its copy states what has no effect
    assert again == first
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["guarantees"] == result["guarantees"]


@pytest.mark.lengthy
def test_a_folder_that_is_not_empty_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    run("simulate", *SHORT, "--output", "out")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").iterdir()}
    for repeated in ((), ("--repeat", "2")):
        told = run("simulate", *SHORT, "--output", "out", *repeated)
        assert told.code == 2
        assert "nothing was overwritten" in told.err
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.lengthy
def test_an_empty_folder_is_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("simulate", *SHORT, "--output", "out").code == 0


@pytest.mark.lengthy
def test_repeat_gives_the_mean_and_each_accuracy(run: Run, tmp_path: Path) -> None:
    told = run("simulate", *SHORT, "--repeat", "2", "--output", "out", "--json")
    result = only_object(told.out)
    assert set(result) == {*KEYS, "accuracies"}
    assert len(result["accuracies"]) == 2
    assert result["accuracy"] == pytest.approx(sum(result["accuracies"]) / 2)
    assert "mean of 2 runs" in told.err
    assert "The guarantee is that of one run" in told.err
    folders = [tmp_path / "out" / number for number in ("1", "2")]
    models = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert models[0] != models[1]  # fresh noise
    assert {path.name for path in folders[0].iterdir()} >= FILES


@pytest.mark.lengthy
def test_two_runs_in_one_second_have_two_folders(run: Run) -> None:
    first, second = (only_object(run("simulate", *SHORT, "--json").out)["run_dir"] for _ in range(2))
    assert first != second


def test_list_names_every_scenario_and_runs_none(run: Run, tmp_path: Path) -> None:
    told = run("simulate", "--list")
    assert [line.split()[0] for line in told.out.splitlines()] == scenario_names()
    assert list(tmp_path.iterdir()) == []


def test_too_many_lost_replies_end_with_four_and_a_folder_to_read(run: Run, tmp_path: Path) -> None:
    told = run("simulate", *SHORT, "--set", "runtime.dropout=0.5", "--output", "out")
    assert told.code == 4
    assert told.out == ""
    assert told.err.count("\n") == 1
    events = RunFolder(tmp_path / "out").lines("events.jsonl")
    spent = "what was sent counts as spent" in told.err
    assert spent == (len(events) == 2)
    assert spent or "before a vector was asked for" in told.err, "as chance has it, too many are lost early each time"
    assert all(event["aborted"] for event in events)


@pytest.mark.lengthy
def test_a_finished_run_resumed_trains_no_more(run: Run, tmp_path: Path) -> None:
    result = only_object(run("simulate", *SHORT, "--output", "out", "--json").out)
    events = (tmp_path / "out" / "events.jsonl").read_bytes()
    again = only_object(run("simulate", "--resume", "out", "--json").out)
    assert again == result
    assert (tmp_path / "out" / "events.jsonl").read_bytes() == events


# ---------------------------------------------------------------- plan, report


def test_plan_tells_the_fields_of_the_plan(run: Run, tmp_path: Path) -> None:
    import fedlearn

    told = run("plan", "digits", "--json")
    assert told.code == 0
    planned = only_object(told.out)
    expected = fedlearn.plan(fedlearn.RunConfig.load("digits")).as_dict()
    assert planned == {**json.loads(json.dumps(expected)), "refusals": []}
    assert {"noise_multiplier", "noise_std", "sensitivity", "bytes_per_round", "noise_to_signal"} <= set(planned)
    assert planned["guarantee"]["epsilon"] <= 3
    assert planned["warnings"] == []
    assert list(tmp_path.iterdir()) == []


def test_plan_warns_that_the_server_sees_vectors_without_masks(run: Run) -> None:
    unmasked = ("--set", "secure_aggregation.masking=false")
    planned = only_object(run("plan", "digits", *unmasked, "--json").out)
    assert any("masking is off" in warning for warning in planned["warnings"])
    assert "\nwarning: masking is off" in run("plan", "digits", *unmasked).out


def test_plan_in_words(run: Run) -> None:
    told = run("plan", "digits")
    assert told.err == ""
    for words in ("noise multiplier", "noise to signal", "at most 32", "epsilon 3.0000 at delta 1e-05"):
        assert words in told.out


def test_plan_warns_where_noise_is_longer_than_any_sum(run: Run) -> None:
    planned = only_object(run("plan", "digits", "--set", "privacy.target_epsilon=0.5", "--json").out)
    assert planned["noise_to_signal"] > 1
    assert any("as long as the largest possible sum" in warning for warning in planned["warnings"])


def test_plan_refused_says_why_in_words_and_in_json(run: Run) -> None:
    told = run("plan", "digits", "--set", "privacy.delta=0.01", "--json")
    assert told.code == 2
    refused = only_object(told.out)
    assert refused["refusals"] == [told.err.removeprefix("fedlearn: ").removesuffix("\n")]
    assert "1/planned_records" in refused["refusals"][0]
    assert refused["warnings"] == []


@pytest.mark.lengthy
def test_report_draws_the_same_page_again(run: Run, tmp_path: Path) -> None:
    run("simulate", *SHORT, "--output", "out")
    page = tmp_path / "out" / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    told = run("report", "out")
    assert told.code == 0
    assert told.out == "out/report.html\n"
    assert page.read_bytes() == drawn


# ---------------------------------------------------------------- interrupted

# Steps enough that a round is long against the time between two looks at its checkpoint.
LONG = ("--set", "run.rounds=4", "--set", "privacy.mode=record-local", "--set", "training.local_steps=100")


def _heed_interrupts() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and tests may be started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A real run, in its third round, with vectors asked for."""
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "fedlearn.cli", "simulate", *LONG, "--output", str(folder), "--json"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts if os.name == "posix" else None,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        stored = RunFolder(folder).load_checkpoint() if folder.is_dir() else None
        if stored is not None and stored[0].round == 2 and stored[0].asking:
            break
        time.sleep(0.05)
    yield process, folder
    if process.poll() is None:
        process.kill()
    process.communicate()


def assert_resumes(run: Run, folder: Path) -> None:
    """The run goes on to its end, and the attempt that was interrupted counts as spent."""
    kept = RunFolder(folder).lines("metrics.jsonl")
    result = only_object(run("simulate", "--resume", folder, "--json").out)
    assert result["rounds"] == 4
    lines = RunFolder(folder).lines("metrics.jsonl")
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert lines[: len(kept)] == kept
    events = RunFolder(folder).lines("events.jsonl")
    assert [(event["round"], event["attempt"]) for event in events if event["aborted"]] == [(3, 0)]
    assert len({(event["round"], event["attempt"]) for event in events}) == len(events) == 5
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["attempts"] == summary["releases"] == 5
    stored = RunFolder(folder).load_checkpoint()
    assert stored is not None
    assert stored[0].spare_rounds_left == 1  # of two
    assert summary["guarantees"][0]["epsilon"] < 3  # planned for six
    assert {path.name for path in folder.iterdir()} >= FILES
    assert not [path for path in folder.iterdir() if path.name.endswith(".new")]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_run_goes_on(started: tuple[subprocess.Popen[str], Path], run: Run) -> None:
    process, folder = started
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err == "fedlearn: interrupted; what was released counts, the run folder is intact\n"
    assert not (folder / "summary.json").exists()
    assert_resumes(run, folder)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_9_in_a_round_counts_as_spent_and_the_run_goes_on(
    started: tuple[subprocess.Popen[str], Path], run: Run
) -> None:
    process, folder = started
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert_resumes(run, folder)
