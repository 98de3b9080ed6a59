"""Runs that survive: the SuperLink and the coordinator killed in the middle of one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.host.process_tree import descendants
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


def test_f12_a_run_survives_its_superlink_and_then_its_coordinator_killed_in_the_middle(
    federation: RealFederation,
) -> None:
    """Each costs an attempt at most; no registration is lost, and of what is killed nothing is left."""
    folder = federation.begin("run.rounds=3")
    federation.wait(lambda: lines(folder / "metrics.jsonl"), 600)
    service = federation.service
    assert service is not None
    (gate,) = federation.of_operator(SUPERLINK)
    os.kill(gate, signal.SIGKILL)
    federation.wait(lambda: len(lines(folder / "metrics.jsonl")) == 2, 600)
    assert federation.service == service, "it started another SuperLink"
    left = descendants(service)
    os.kill(service, signal.SIGKILL)
    federation.wait(lambda: not [pid for pid in left if Path(f"/proc/{pid}").exists()], 30)
    federation.operator("start --detach")
    check_finished(federation, folder)
    assert len(federation.online()) == 4
