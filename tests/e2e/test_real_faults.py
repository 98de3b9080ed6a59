"""Faults of docs/specification/faults.md 2 in a real federation: harmed calls, killed processes, a full disk.

Each has a fast twin of the same number, against the state machines alone.
"""

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.data import load_dataset
from fedlearn.data.dataset import DataOptions
from fedlearn.holder.deployed import DeployedAgent
from fedlearn.run.checkpoint import RunFolder
from tests.e2e.proxy import Harm, How
from tests.e2e.real_federation import (
    BLOCKS,
    COORDINATOR,
    EXECUTOR,
    NAMES,
    NODE,
    RealFederation,
    check_finished,
    is_alive,
    kill,
    lines,
)
from tests.holder_files import table_source
from tests.simulation.test_deployed_equals_simulated import run_over, scenario, write_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OWN_TABLE = """
[dataset.table]
source = {source}
privacy_unit = "record"
max_epsilon = 1.0
max_delta = 1e-5
models = ["linear"]
modes = ["none"]
"""
OFFLINE_SECONDS = 120.0  # after the end of a fault, at most
_DISK_MEGABYTES = 1500


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    folder = tmp_path_factory.mktemp("demo")
    place = folder / "demo" / "operator"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m,mode=0700", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    holder = BLOCKS["file=holder.toml"].replace("max_epsilon = 3.0", "max_epsilon = 30.0")
    holder += OWN_TABLE.format(source=table_source("own-table.csv", scenario(folder)))
    begun, _, _ = BLOCKS["run=federation"].rpartition("fedlearn server run")
    made = RealFederation(folder, holder=holder, script=begun, proxied=True)
    try:
        assert made.started.returncode == 0, made.started.stderr
        made.wait(lambda: len(made.online()) == 4, OFFLINE_SECONDS)
        yield made
        made.end()
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def events(folder: Path) -> list[tuple[int, int]]:
    return [(line["round"], line["attempt"]) for line in lines(folder / "events.jsonl")]


def test_f1_f2_f3_lost_calls_of_three_nodes_cost_no_attempt(federation: RealFederation) -> None:
    """An upload's answer, a message on its way and a reply that Flower calls sent are lost, in one run."""
    harms = [
        federation.proxies["Ada"].harm(Harm(How.LOST, "push-object")),
        federation.proxies["Ben"].harm(Harm(How.LOST, "pull-object")),
        federation.proxies["Cleo"].harm(Harm(How.LOST, "push-messages")),
    ]
    folder = federation.begin("run.rounds=2")
    check_finished(federation, folder, rounds=2)
    assert [harm.done for harm in harms] == [1, 1, 1]
    assert events(folder) == [(1, 0), (2, 0)]
    assert len(federation.online()) == 4


def test_f21_every_tenth_call_of_every_node_is_reset_and_a_round_finishes(federation: RealFederation) -> None:
    harms = [proxy.harm(Harm(How.RESET, times=10**6, every=10)) for proxy in federation.proxies.values()]
    folder = federation.begin("run.rounds=1")
    check_finished(federation, folder, rounds=1)
    for harm in harms:
        harm.over.set()
        assert harm.done > 10
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


def test_f4_f5_f7_nodes_that_cannot_go_on_are_back_in_two_minutes(federation: RealFederation) -> None:
    """HTTP 500 for a message and for a heartbeat, 401, kill -9: Flower's node is lost, each in its way."""
    before = {name: set(federation.of_holder(name, NODE)) for name in NAMES}
    federation.proxies["Ada"].harm(Harm(How.STATUS, "pull-messages"))
    federation.proxies["Ben"].harm(Harm(How.STATUS, "send-node-heartbeat"))
    federation.proxies["Cleo"].harm(Harm(How.STATUS, "pull-messages", status=401))
    for process in before["Dora"]:
        kill(process)
    federation.wait(lambda: all(before[name] - set(federation.of_holder(name, NODE)) for name in NAMES), 90)
    told = [line.split('"message": ')[-1] for line in start_log(federation, "Cleo")]
    assert any("this machine's clock is off, or the key was revoked" in line for line in told)
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)
    assert all(before[name].isdisjoint(federation.of_holder(name, NODE)) for name in NAMES)


def test_f5_a_node_that_ends_in_order_is_back_at_once(federation: RealFederation) -> None:
    (node,) = federation.of_holder("Ada", NODE)
    kill(node, signal.SIGTERM)
    federation.wait(lambda: not is_alive(node) and federation.of_holder("Ada", NODE), 20)
    federation.wait(lambda: len(federation.online()) == 4, 30)


def start_log(federation: RealFederation, name: str) -> list[str]:
    return (federation.home(name) / "log" / "start.log").read_text().splitlines()


@pytest.mark.parametrize(("seconds", "way"), [(60, "60 s ahead of"), (-310, "310 s behind")])
def test_f6_a_client_whose_clock_is_off_does_not_start_and_says_why(
    federation: RealFederation, seconds: int, way: str
) -> None:
    if federation.holder("Dora"):
        federation.client("Dora", "stop")
    clock = federation.folder / "clock"
    clock.write_text(str(seconds))
    path = f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parent / 'moved_clock'}"
    moved = {"MOVED_CLOCK": str(clock), "PYTHONPATH": path}
    started = federation.shell("fedlearn client start --detach --same-user --home demo/Dora", **moved)
    assert started.returncode == 2
    assert "Traceback" not in started.stderr
    sentence = started.stderr.splitlines()[-1]
    assert re.sub(r"\b(59|61)\b", "60", re.sub(r"\b(309|311)\b", "310", sentence)).startswith(
        f"fedlearn: this machine's clock is {way}"
    )
    clock.write_text("0")
    if seconds < 0:
        federation.client("Dora", "start --detach --same-user")
        federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


def test_f13_f16_a_disk_that_fills_in_a_run_costs_attempts_and_begins_no_other(federation: RealFederation) -> None:
    if os.statvfs(federation.server).f_blocks * os.statvfs(federation.server).f_frsize > 2 * _DISK_MEGABYTES << 20:
        pytest.skip("no disk of its own could be mounted; the fast twin is tests/deployment/test_operating.py")
    folder = federation.begin("run.rounds=2", "run.spare_rounds=8", "privacy.max_participations=10")
    federation.wait(lambda: lines(folder / "metrics.jsonl"), 400)
    ballast = federation.server / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    refused = federation.shell("fedlearn server run demo/operator/server/run.example.toml --home demo/operator")
    assert refused.returncode == 2
    assert "GB of disk are free; the run needs 1.0 GB" in refused.stderr
    assert "Traceback" not in refused.stderr
    federation.wait(lambda: not federation.of_operator(COORDINATOR), 120)
    assert os.statvfs(federation.server).f_bavail == 0
    ballast.unlink()
    check_finished(federation, folder, rounds=2)
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


def server_log(federation: RealFederation) -> str:
    return (federation.server / "server.log").read_text()


def test_f14_a_run_that_flower_never_starts_is_submitted_again(federation: RealFederation) -> None:
    """Flower's SuperExec can die alone: the SuperLink goes on and takes runs, and starts none."""
    for process in federation.of_operator(EXECUTOR):
        kill(process)
    folder = federation.begin("run.rounds=1")
    federation.wait(lambda: "gives no sign of life" in server_log(federation), 120)
    check_finished(federation, folder, rounds=1)
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


def test_f15_an_emptied_database_of_flowers_is_made_anew_with_every_member(federation: RealFederation) -> None:
    """Flower starts over it without a word; one that is cut is set aside before (tests/deployment)."""
    federation.operator("stop")
    os.truncate(federation.server / "superlink.db", 0)
    federation.operator("start --detach")
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


@pytest.mark.parametrize("path", ["/v1/fleet/push-object", "/v1/fleet/push-messages"])
def test_f18_the_superlink_takes_no_body_longer_than_a_part(federation: RealFederation, path: str) -> None:
    """That 100,000 metric keys in a body that fits cost nobody but their sender is tests/faults/test_messages.py's."""
    trusted = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    asked = urllib.request.Request(f"https://{federation.status()['address']}{path}", data=bytes(64 << 20))
    with pytest.raises((urllib.error.HTTPError, OSError)) as refused:
        urllib.request.urlopen(asked, context=trusted, timeout=30)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413
    assert len(federation.online()) == 4


def test_a_holder_that_is_killed_is_out_and_three_finish_the_masked_run(federation: RealFederation) -> None:
    folder = federation.begin("run.rounds=3")
    federation.wait(lambda: lines(folder / "metrics.jsonl"), 400)
    process = federation.holder("Dora")
    assert process is not None
    kill(process)
    check_finished(federation, folder)
    survivors = [line["survivors"] for line in lines(folder / "metrics.jsonl")]
    assert survivors[0] == 4
    assert survivors[-1] == 3
    federation.client("Dora", "start --detach --same-user")
    federation.wait(lambda: len(federation.online()) == 4, OFFLINE_SECONDS)


def test_the_real_runs_model_is_that_of_the_same_agents_in_one_process_to_the_bit(
    federation: RealFederation, tmp_path: Path
) -> None:
    """That the latter is the simulated one is tests/simulation/test_deployed_equals_simulated.py's."""
    loaded = load_dataset(DataOptions(dataset="digits"))
    assert loaded.test is not None
    write_csv(tmp_path / "test.csv", loaded.test)
    for member, name in enumerate(NAMES):
        own = loaded.train.take(np.arange(member, len(loaded.train), 4))
        write_csv(federation.home(name) / "own-table.csv", own)
    config = scenario(tmp_path)
    assert config.source is not None
    run = federation.operator(f"run {config.source} --set run.rounds=2").split()[-1]
    real = RunFolder(federation.server / "runs" / run)
    check_finished(federation, real.path, rounds=2)

    roster = real.roster()
    agents = [alike(federation.home(name), tmp_path / name) for name in NAMES]
    here = run_over(agents, tmp_path / "here", RunConfig.load(real.file("config.toml")), roster).load_checkpoint()
    there = real.load_checkpoint()
    assert here is not None
    assert there is not None
    np.testing.assert_array_equal(there[1], here[1])
    for agent in agents:
        agent.close()


def alike(home: Path, copy: Path) -> DeployedAgent:
    """An agent of the same holder, with a ledger of its own."""
    copy.mkdir()
    for name in ("client.toml", "roster.toml", "confirmed.toml", "own-table.csv", "identity.key"):
        if (home / name).exists():
            shutil.copy2(home / name, copy / name)
    return DeployedAgent(copy / "client.toml")
