"""Runs that survive: the SuperLink and the coordinator killed in the middle of one."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.flower.process_tree import descendants
from tests.e2e.real_federation import BLOCKS, RealFederation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = "demo/operator/server/run.example.toml --set run.rounds=3"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    holder = BLOCKS["file=holder.toml"].replace("max_epsilon = 3.0", "max_epsilon = 30.0")
    begun, _, run = BLOCKS["run=federation"].rpartition("fedlearn server run")
    assert run
    made = RealFederation(tmp_path_factory.mktemp("demo"), holder=holder, script=begun)
    assert made.started.returncode == 0, made.started.stderr
    yield made
    made.end()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def begin(federation: RealFederation) -> Path:
    """A run whose first round is done; gives its folder."""
    run = federation.operator(f"run {RUN}").split()[-1]
    folder = federation.server / "runs" / run
    federation.wait(lambda: lines(folder / "metrics.jsonl"), 600)
    return folder


def check_finished(federation: RealFederation, folder: Path) -> None:
    """Every round once, and every attempt that asked for vectors booked once."""
    federation.wait(lambda: (folder / "summary.json").is_file(), 900)
    federation.wait(lambda: federation.status()["runs"][-1]["state"] == "finished", 60)
    assert [line["round"] for line in lines(folder / "metrics.jsonl")] == [1, 2, 3]
    asked = [(line["round"], line["attempt"]) for line in lines(folder / "events.jsonl")]
    assert len(asked) == len(set(asked))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["attempts"] == len(asked)


def of_program(pid: int, name: str) -> bool:
    return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_f12_a_superlink_that_is_killed_in_a_round_costs_an_attempt_and_no_registration(
    federation: RealFederation,
) -> None:
    folder = begin(federation)
    service = federation.status()["process"]
    (gate,) = [pid for pid in descendants(service) if of_program(pid, "superlink_gate")]
    os.kill(gate, signal.SIGKILL)
    check_finished(federation, folder)
    assert federation.status()["process"] == service
    assert set(federation.status()["members"].values()) == {"online"}


def test_a_coordinator_that_is_killed_leaves_nothing_behind_and_goes_on_when_it_is_started(
    federation: RealFederation,
) -> None:
    folder = begin(federation)
    service = federation.status()["process"]
    left = descendants(service)
    os.kill(service, signal.SIGKILL)
    federation.wait(lambda: not [pid for pid in left if Path(f"/proc/{pid}").exists()], 30)
    federation.operator("start --detach")
    check_finished(federation, folder)
