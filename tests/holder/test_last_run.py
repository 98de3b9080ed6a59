"""What a holder is told of its last run, on its own machine: local work that failed, of which nothing leaves."""

import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from fedlearn.cli import app
from fedlearn.data import load_dataset
from fedlearn.data.dataset import DataOptions
from fedlearn.deployment.holder_status import read_status
from fedlearn.holder.last_run import WorkWatch, failed_work_of_last_run
from tests.holder_files import seed, small_roster, write_policy
from tests.simulation.test_deployed_equals_simulated import deploy, run_over, scenario, write_csv

A, B = "a" * 32, "b" * 32


@pytest.mark.parametrize("away", [(), (1,)])
def test_a_holder_sees_that_its_local_work_failed_and_nobody_else_does(tmp_path, away):
    loaded = load_dataset(DataOptions(dataset="digits"))
    write_csv(tmp_path / "test.csv", loaded.test)
    for member in range(4):
        write_csv(tmp_path / f"own-{member}.csv", loaded.train.take(range(member * 50, member * 50 + 50)))
    config, roster = scenario(tmp_path), small_roster()
    agents = [deploy(tmp_path, member, roster, seed(member), config) for member in range(4)]
    for member in away:
        (tmp_path / f"own-{member}.csv").unlink()
    folder = run_over(agents, tmp_path / "run", config, roster)
    assert [line["survivors"] for line in folder.lines("events.jsonl")] == [4, 4, 4]
    for member, agent in enumerate(agents):
        home = tmp_path / f"home-{member}"
        told = read_status(home).as_dict()["failed_work"]
        assert set(told) == ({"digits"} if member in away else set())
        if member in away:
            assert (told["digits"]["releases"], told["digits"]["why"]) == (3, "DataError")
            assert datetime.fromisoformat(told["digits"]["when"]).tzinfo is not None
            assert (home / "failed_work.json").stat().st_mode & 0o077 == 0
        agent.close()
    for path in folder.path.rglob("*"):
        assert path.is_dir() or b"DataError" not in path.read_bytes()


def test_status_tells_of_the_last_run_alone_also_after_a_restart(tmp_path):
    policy = write_policy(tmp_path / "client")
    at = datetime(2026, 12, 1, 4, 30, tzinfo=UTC)
    for _ in range(2):  # a restarted agent goes on counting
        watch = WorkWatch(policy.parent, "digits", A, now=lambda: at)
        watch.begin()
        watch.failed(ValueError("a record: 17"))
    WorkWatch(policy.parent, "other", B, now=lambda: at).failed(MemoryError())
    command = ["client", "status", "--home", str(tmp_path)]
    said = CliRunner().invoke(app, command).output
    assert "data set digits, in its last run: local work failed in 2 releases" in said
    assert "the last was ValueError at 2026-12-01T04:30:00+00:00" in said
    assert "17" not in said.replace("2026-12-01", "")
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert printed["failed_work"]["digits"] == {
        "session": A,
        "releases": 2,
        "why": "ValueError",
        "when": "2026-12-01T04:30:00+00:00",
    }
    WorkWatch(policy.parent, "digits", B).begin()
    assert set(failed_work_of_last_run(policy.parent)) == {"other"}
    for damaged in ("[]", '{"digits": 1}', '{"digits": {"session": 1}}', "x"):
        (policy.parent / "failed_work.json").write_text(damaged)
        assert failed_work_of_last_run(policy.parent) == {}
