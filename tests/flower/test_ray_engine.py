"""The Ray engine: the model of the in-process engine, and no process left behind, however a run ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedlearn
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import BudgetExceededError, ConfigError, RunFailedError
from fedlearn.host.process_tree import adopt_orphans, descendants
from fedlearn.run.checkpoint import RunFolder
from fedlearn.run.failure import forget_failure, raise_failure, record_failure
from fedlearn.simulation.run import resume
from tests.flower.test_own_socket import everywhere

ray_run = pytest.mark.timeout(300)
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")


@contextmanager
def nothing_left(within: float = 0.0) -> Iterator[None]:
    """Fails where a process started inside still runs `within` seconds after it; orphans come to this process."""
    adopt_orphans()
    before = set(descendants(os.getpid()))
    yield
    deadline = time.monotonic() + within
    while (left := _running(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _running(before: set[int]) -> list[str]:
    running = []
    for process in set(descendants(os.getpid())) - before:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state != "Z":
            running.append(Path(f"/proc/{process}/cmdline").read_text())
    return running


def digits(*overrides: str) -> RunConfig:
    return RunConfig.load("digits", ["run.rounds=2", "runtime.device=cpu", *overrides])


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the runs of this test alone make temporary folders; its path is so short that sockets may lie in it."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp", ignore_cleanup_errors=True) as place:
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


@pytest.mark.lengthy
@pytest.mark.slow
@ray_run
def test_mode_none_gives_the_same_model_in_process_and_on_ray_where_proxies_are_named(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, nobody in everywhere("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, nobody)
    mode = "privacy.mode=none"
    here = fedlearn.simulate(digits(mode), output=tmp_path / "here")
    folder, told = tmp_path / ("a folder 'whose' path is \"long\" " * 6), []
    with nothing_left():
        there = fedlearn.simulate(digits(mode, "runtime.engine=ray"), told.append, output=folder)
    expected, reached = (load_file(run.run_dir / "model.safetensors") for run in (here, there))
    assert expected.keys() == reached.keys()
    assert max(np.abs(expected[name] - reached[name]).max() for name in expected) <= 1e-6
    assert [result.round for result in told] == [1, 2]
    assert there.accuracy == pytest.approx(here.accuracy)
    assert not (folder / "agents.address").exists()
    assert not list(temporary.glob("fl-*"))


@pytest.mark.slow
@ray_run
def test_ctrl_c_ends_everything_and_resume_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with nothing_left():
        command = start(folder, "run.rounds=8")
        wait_for_a_round(folder, command)
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
    done = len(RunFolder(folder).lines("metrics.jsonl"))
    assert 1 <= done < 8
    with nothing_left():
        result = resume(folder)
    assert result.rounds == 8
    assert [line["round"] for line in RunFolder(folder).lines("metrics.jsonl")] == list(range(1, 9))
    events = RunFolder(folder).lines("events.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["attempts"] == len(events) <= 9


@pytest.mark.slow
@ray_run
def test_kill_9_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    with nothing_left(within=30):
        command = start(tmp_path / "run", "run.rounds=30")
        wait_for_a_round(tmp_path / "run", command)
        assert list(temporary.glob("fl-*"))
        command.kill()
        command.wait(10)
    assert not list(temporary.glob("fl-*"))


@pytest.mark.slow
@ray_run
def test_what_on_round_raises_ends_everything_and_is_raised(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise ZeroDivisionError

    with nothing_left(), pytest.raises(ZeroDivisionError):
        fedlearn.simulate(digits("run.rounds=30", "runtime.engine=ray", "privacy.mode=none"), stop, output=tmp_path)


@pytest.mark.slow
@ray_run
def test_a_run_that_failed_says_why_on_ray_as_it_does_in_process(tmp_path: Path) -> None:
    failing = ("run.spare_rounds=0", "runtime.dropout=0.9")  # who fails, and at which stage, is drawn at random
    too_few = r"round 1: \d+ clients [a-z ]+; expected at least \d: the attempt ends, nothing is unmasked; "
    with pytest.raises(RunFailedError, match=too_few):
        fedlearn.simulate(digits(*failing), output=tmp_path / "here")
    with nothing_left(), pytest.raises(RunFailedError, match=too_few):
        fedlearn.simulate(digits(*failing, "runtime.engine=ray"), output=tmp_path / "there")


@pytest.mark.slow
@ray_run
def test_a_private_run_books_the_same_events_and_budget_on_both_engines(tmp_path: Path) -> None:
    here = fedlearn.simulate(digits(), output=tmp_path / "here")
    with nothing_left():
        there = fedlearn.simulate(digits("runtime.engine=ray"), output=tmp_path / "there")
    booked, booked_on_ray = (RunFolder(tmp_path / name).lines("events.jsonl") for name in ("here", "there"))
    for line in (*booked, *booked_on_ray):
        assert line.pop("transcript")  # a hash of an attempt's keys
    assert booked == booked_on_ray
    assert here.guarantees == there.guarantees


@pytest.mark.slow
@ray_run
@pytest.mark.parametrize("masking", ["true", "false"])
def test_local_work_that_failed_is_counted_on_ray_as_in_process(masking: str, tmp_path: Path) -> None:
    failing = ("privacy.mode=none", "training.local_steps=1", "training.batch_size=4", "model.options.share=0.3")
    picky = ("model.name=tests.test_nothing_learned:picky", f"secure_aggregation.masking={masking}", *failing)
    here = fedlearn.simulate(digits(*picky), output=tmp_path / "here")
    with nothing_left():
        there = fedlearn.simulate(digits(*picky, "runtime.engine=ray"), output=tmp_path / "there")
    assert here.local_work is not None
    assert 0 < here.local_work.failed < here.local_work.clients == 20
    assert there.local_work == here.local_work
    summary = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert summary["local_work"]["failed"] == here.local_work.failed


def test_without_ray_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlearn\[ray\]'"):
        fedlearn.simulate(digits("runtime.engine=ray"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recorded_failure_keeps_its_kind_and_its_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    raise_failure(folder)
    record_failure(folder, BudgetExceededError("nothing is left"))
    record_failure(folder, RunFailedError("what followed from it"))
    with pytest.raises(BudgetExceededError, match="nothing is left"):
        raise_failure(folder)
    forget_failure(folder)
    raise_failure(folder)


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "fedlearn.cli", "simulate", "--engine", "ray", "--output", str(folder), *settings]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_for_a_round(folder: Path, command: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not RunFolder(folder).lines("metrics.jsonl"):
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
