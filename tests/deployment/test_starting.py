"""What a holder accepts before anything runs, and what it sees and says afterwards."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedlearn
from fedlearn.cli import app
from fedlearn.deployment.background import EndedEarlyError, start_in_background
from fedlearn.deployment.holder_status import leave, pause, policy_differs, read_status
from fedlearn.deployment.starting import Start, holder_process, keep_accepted
from fedlearn.deployment.supervisor import POLICY_KEY
from fedlearn.errors import ConfigError, FedlearnError, RefusedError
from fedlearn.holder.deployed import DeployedAgent
from fedlearn.holder.socket import is_answering
from fedlearn.host.process_tree import descendants
from fedlearn.policy.acceptance import Acceptance
from fedlearn.policy.holder_policy import HolderPolicy
from tests.holder_files import small_roster, write_policy


@pytest.fixture
def folder(tmp_path):
    return write_policy(tmp_path / "client").parent


def test_acceptance_is_of_both_files_byte_for_byte(folder):
    policy = HolderPolicy.load(folder / "client.toml")
    acceptance = Acceptance.of(policy)
    assert acceptance.policy_sha256 == hashlib.sha256((folder / "client.toml").read_bytes()).hexdigest()
    assert acceptance.roster_sha256 == small_roster().sha256.hex()
    assert not acceptance.is_known(folder)
    acceptance.keep(folder)
    assert acceptance.is_known(folder)
    (folder / "client.toml").write_bytes((folder / "client.toml").read_bytes() + b"\n")
    assert not Acceptance.of(HolderPolicy.load(folder / "client.toml")).is_known(folder)


def test_told_hashes_count_only_if_both_are_told_and_fit(folder):
    acceptance = Acceptance.of(HolderPolicy.load(folder / "client.toml"))
    assert not acceptance.check_told(None, None)
    assert acceptance.check_told(acceptance.policy_sha256.upper(), acceptance.roster_sha256)
    with pytest.raises(ConfigError, match="go together"):
        acceptance.check_told(acceptance.policy_sha256, None)
    for told in (("0" * 64, acceptance.roster_sha256), (acceptance.policy_sha256, "0" * 64)):
        with pytest.raises(RefusedError, match="nothing runs"):
            acceptance.check_told(*told)


def test_without_an_answer_nothing_runs(folder):
    command = [sys.executable, "-m", "fedlearn.cli", "client", "start", "--same-user", "--home", str(folder.parent)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "not accepted, so nothing runs" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["client.toml", "identity.key", "roster.toml"]


def test_what_lies_in_the_folder_where_it_is_started_is_not_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "typer.py").write_text(f"open({str(tmp_path / 'obeyed')!r}, 'w')\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fedlearn.__file__).parents[1]))
    arguments = ["client", "start", "--home", str(tmp_path / "none")]
    with pytest.raises(EndedEarlyError):
        start_in_background(arguments, tmp_path / "log", is_up=lambda _: False, seconds=60, party="client")
    assert not (tmp_path / "obeyed").exists()


def test_one_user_for_both_parts_has_to_be_said(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="--same-user"):
        Start(folder, same_user=False).check_users()
    Start(folder, same_user=True).check_users()
    Start(folder, same_user=False, only="agent").check_users()


def test_root_without_the_two_users_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("fedlearn.deployment.users.AGENT_USER", "no-such-user")
    with pytest.raises(ConfigError, match="client join --system"):
        Start(folder, same_user=False).check_users()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("start", "--same-user", "--only", "both"), "expected agent or node"),
        (("stop",), "not started"),
        (("start", "--same-user", "--accept-policy", "0" * 64), "go together"),
    ],
)
def test_a_mistake_is_a_sentence(folder, command, sentence):
    result = CliRunner().invoke(app, ["client", *command, "--home", str(folder.parent)])
    assert isinstance(result.exception, ConfigError)
    assert sentence in str(result.exception)


def test_status_pause_and_leave_of_a_home_that_does_not_run(folder, tmp_path):
    found = read_status(folder)
    assert found.process is None
    assert found.policy_problem is None
    assert found.as_dict()["running"] is False
    pause(folder, end=False)
    assert read_status(folder).paused
    pause(folder, end=True)
    assert not read_status(folder).paused
    (folder / "node.key").write_bytes(b"key")
    (folder / "ledger.db").touch()
    leave(folder)
    assert {path.name for path in folder.iterdir()} == {"client.toml", "identity.key", "ledger.db"}
    assert "roster" in str(read_status(_without_ledger(folder)).policy_problem)


def test_a_policy_that_was_changed_is_told_from_the_one_that_runs(folder):
    assert not policy_differs(folder)
    known = hashlib.sha256((folder / "client.toml").read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps({"process": 1, POLICY_KEY: known, "parts": {}}))
    assert not read_status(folder).policy_differs
    with (folder / "client.toml").open("a") as file:
        file.write("# a thought\n")
    assert read_status(folder).as_dict()["policy_differs"] is True
    told = CliRunner().invoke(app, ["client", "status", "--home", str(folder.parent)]).output
    assert "the policy's file was changed and is not what runs: fedlearn client stop, then start" in told
    for damaged in ("[]", "{}", '{"policy_sha256": null}', "x"):
        (folder / "state.json").write_text(damaged)
        assert not policy_differs(folder)


def _agent_below(process: int) -> int | None:
    for child in descendants(process):
        with suppress(OSError):
            if b"fedlearn.holder.deployed" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def _wait_for(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_crashed_agent_starts_again_with_what_was_accepted_and_not_with_what_lies_on_disk():
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fl") as place:
        policy = write_policy(Path(place) / "client")
        folder, accepted = policy.parent, Acceptance.of(HolderPolicy.load(policy))
        command = [sys.executable, "-m", "fedlearn.cli", "client", "start", "--only", "agent", "--same-user"]
        command += ["--home", place, "--accept-policy", accepted.policy_sha256]
        command += ["--accept-roster", accepted.roster_sha256]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            _wait_for(lambda: (folder / "state.json").exists() and is_answering(folder / "agent.sock"), process)
            before = (folder / "accepted.toml").read_bytes()
            policy.write_text(policy.read_text().replace('"agent.sock"', '"other.sock"'))
            (folder / "roster.toml").write_text("another one")
            first = _agent_below(process.pid)
            assert first is not None
            os.kill(first, signal.SIGKILL)
            _wait_for(lambda: _agent_below(process.pid) not in (first, None), process)
            _wait_for(lambda: is_answering(folder / "agent.sock"), process)
            assert not (folder / "other.sock").exists()
            assert "was changed and is not what runs" in (folder / "log" / "agent.jsonl").read_text()
            assert read_status(folder).policy_differs
            checks = CliRunner().invoke(app, ["doctor", "--json", "--home", place]).output
            assert "the policy's file was changed and is not what runs" in checks

            (folder / "roster.toml").write_bytes(small_roster().content)
            changed = Acceptance.of(HolderPolicy.load(policy))
            told = ["--accept-policy", changed.policy_sha256, "--accept-roster", changed.roster_sha256]
            second = CliRunner().invoke(app, ["client", "start", "--same-user", "--home", place, *told])
            assert f"started already, by process {process.pid}" in str(second.exception)
            with pytest.raises(ConfigError, match="started already"):  # where it began while the holder was asked
                keep_accepted(Start(folder, same_user=True), changed)
            assert (folder / "accepted.toml").read_bytes() == before
        finally:
            process.terminate()
            process.wait(60)


def test_without_a_readable_acceptance_no_agent_runs(folder):
    for damaged in (None, "x", "[policy]\n", 'policy = ""\nroster = ""\n'):
        if damaged is not None:
            (folder / "accepted.toml").write_text(damaged)
        with pytest.raises(ConfigError):
            DeployedAgent(folder / "client.toml", accepted=True)


def _without_ledger(folder: Path) -> Path:
    (folder / "ledger.db").unlink()
    return folder


def test_a_home_that_is_not_there_is_a_sentence(tmp_path):
    for look in (read_status, lambda place: pause(place, end=False)):
        with pytest.raises(ConfigError, match="join first"):
            look(tmp_path / "client")
    assert holder_process(tmp_path / "client") is None


def test_the_final_model_is_written_once_and_only_if_its_certificate_holds(folder, tmp_path):
    def model(*arguments: object) -> BaseException | None:
        words = [
            "client",
            "model",
            "--home",
            str(folder.parent),
            "--output",
            str(tmp_path / "out"),
            *map(str, arguments),
        ]
        return CliRunner().invoke(app, words).exception

    assert "no final model" in str(model())
    (folder / "models").mkdir()
    for number, session in enumerate(("0" * 32, "1" * 32)):
        (folder / "models" / f"{session}.safetensors").write_bytes(b"model %d" % number)
        os.utime(folder / "models" / f"{session}.safetensors", (number, number))
    assert "expected one of" in str(model("--session", "2" * 32))
    (tmp_path / "certificate.json").write_bytes(b"{}")
    assert isinstance(model("--certificate", tmp_path / "certificate.json"), FedlearnError)
    assert not (tmp_path / "out").exists()
    assert model("--session", "0" * 32) is None
    assert (tmp_path / "out").read_bytes() == b"model 0"
    assert "there already" in str(model())
