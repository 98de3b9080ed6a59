"""Runs that survive: the SuperLink and the coordinator killed in the middle of one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.flower.process_tree import descendants
from tests.e2e.real_federation import BLOCKS, SUPERLINK, RealFederation, check_finished, lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    holder = BLOCKS["file=holder.toml"].replace("max_epsilon = 3.0", "max_epsilon = 30.0")
    begun, _, run = BLOCKS["run=federation"].rpartition("fedlearn server run")
    assert run
    made = RealFederation(tmp_path_factory.mktemp("demo"), holder=holder, script=begun)
    assert made.started.returncode == 0, made.started.stderr
    yield made
    made.end()


def begin(federation: RealFederation) -> Path:
    """A run whose first round is done; gives its folder."""
    folder = federation.begin("run.rounds=3")
    federation.wait(lambda: lines(folder / "metrics.jsonl"), 600)
    return folder


def test_f12_a_superlink_that_is_killed_in_a_round_costs_an_attempt_and_no_registration(
    federation: RealFederation,
) -> None:
    folder = begin(federation)
    service = federation.service
    (gate,) = federation.of_operator(SUPERLINK)
    os.kill(gate, signal.SIGKILL)
    check_finished(federation, folder)
    assert federation.service == service
    assert set(federation.status()["members"].values()) == {"online"}


def test_a_coordinator_that_is_killed_leaves_nothing_behind_and_goes_on_when_it_is_started(
    federation: RealFederation,
) -> None:
    folder = begin(federation)
    service = federation.service
    assert service is not None
    left = descendants(service)
    os.kill(service, signal.SIGKILL)
    federation.wait(lambda: not [pid for pid in left if Path(f"/proc/{pid}").exists()], 30)
    federation.operator("start --detach")
    check_finished(federation, folder)
