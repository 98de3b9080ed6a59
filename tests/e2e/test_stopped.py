"""F4: processes that are there and stopped, in a real federation: noticed, ended, started again."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.host.process_tree import descendants, is_stopped
from tests.e2e.real_federation import BLOCKS, RealFederation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NOTICED_SECONDS = 90.0
OFFLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    begun, _, run = BLOCKS["run=federation"].rpartition("fedlearn server run")
    assert run
    made = RealFederation(tmp_path_factory.mktemp("demo"), holder=BLOCKS["file=holder.toml"], script=begun)
    assert made.started.returncode == 0, made.started.stderr
    made.wait(lambda: all_online(made), 120)
    yield made
    made.end()


def all_online(federation: RealFederation) -> bool:
    return set(federation.status()["members"].values()) == {"online"}


def process_below(root: int, words: str) -> int:
    found = [pid for pid in descendants(root) if words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found[0]


def holder(federation: RealFederation, name: str) -> int:
    return int(json.loads((federation.folder / "demo" / name / "client" / "state.json").read_text())["process"])


def stop(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while not is_stopped(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_f4_stopped_agent_node_and_executor_are_noticed_and_the_nodes_are_online_again(federation):
    agent = process_below(holder(federation, "Ada"), "fedlearn.holder.deployed")
    node = process_below(holder(federation, "Ben"), "fedlearn.flower.supernode")
    executor = process_below(holder(federation, "Cleo"), "flower-superexec")
    for process in (agent, node, executor):
        stop(process)
    federation.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (agent, node, executor)), NOTICED_SECONDS)
    federation.wait(lambda: all_online(federation), OFFLINE_SECONDS)
    assert process_below(holder(federation, "Ada"), "fedlearn.holder.deployed") != agent
    told = (federation.folder / "demo" / "Ben" / "client" / "log" / "start.log").read_text()
    assert "the node: it gave no sign of life; it is tried again" in [
        json.loads(x)["message"] for x in told.splitlines()
    ]


def test_f4_a_stopped_superlink_is_started_again_and_a_run_goes_through(federation):
    gate = process_below(federation.status()["process"], "superlink_gate")
    stop(gate)
    log = federation.server / "server.log"
    federation.wait(lambda: "does not answer; starting it again" in log.read_text(), NOTICED_SECONDS + 30)
    federation.wait(lambda: not Path(f"/proc/{gate}").exists(), 30)
    federation.wait(lambda: all_online(federation), OFFLINE_SECONDS)
    run = federation.operator("run demo/operator/server/run.example.toml --set run.rounds=1").split()[-1]
    federation.wait(lambda: (federation.server / "runs" / run / "summary.json").is_file(), 300)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line for line in lines if line.get("run") == run and line.get("round") == 1 and line["survivors"] >= 3]
    for flower in (federation.server / "superlink.log", federation.server / "conclusion.log"):
        assert all(isinstance(json.loads(line), dict) for line in flower.read_text().splitlines())
