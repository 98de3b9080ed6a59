"""What an operator may watch: the log of a service, and what Prometheus reads; nothing in either depends on records."""

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from server_files import free_ports, new_home

from fedlearn.deployment.monitoring import MetricsEndpoint, exposition, rounds_after
from fedlearn.deployment.runs import Runs
from fedlearn.errors import ConfigError
from fedlearn.host.logs import begin_log, tell, tell_error
from fedlearn.run.checkpoint import RunFolder

ROUND = {"round": 1, "attempt": 2, "asked": 4, "survivors": 3, "accuracy": 0.4711, "loss": 4.711, "epsilon": 1.4711}


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path)


@pytest.fixture
def run(home):
    """A run of five rounds that has done one, with an attempt that was aborted."""
    folder = RunFolder(home.folder / "runs" / "r1")
    folder.path.mkdir()
    (folder.path / "config.toml").write_bytes((home.folder / "run.example.toml").read_bytes())
    for line in ({"round": 1, "aborted": True}, {"round": 1, "aborted": False}):
        folder.append("events.jsonl", line)
    folder.append("metrics.jsonl", {**ROUND, "seconds": 4.711})
    runs = Runs(home.database_path)
    runs.add("r0")
    runs.end("r0", "finished")
    runs.add("r1")
    runs.submitted("r1", 7)
    yield runs
    runs.close()


def text_of(home, runs):
    return exposition(home, runs.all(), members=4, online=3, superlink_up=True, superlink_restarts=2)


def test_the_text_is_what_prometheus_reads(home, run):
    lines = text_of(home, run).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z_]+="[^"\\\n]*"\})? -?\d+', line) for line in samples)
    assert {re.split(r"[ {]", line)[0] for line in samples} == {
        line.split()[2] for line in lines if line.startswith("# TYPE")
    }
    assert 'fedlearn_runs{state="running"} 1' in samples
    assert 'fedlearn_runs{state="finished"} 1' in samples
    assert 'fedlearn_runs{state="failed"} 0' in samples
    for sample in ("rounds_planned", "rounds_done", "attempts", "attempts_aborted", "survivors"):
        value = {"rounds_planned": 5, "rounds_done": 1, "attempts": 2, "attempts_aborted": 1, "survivors": 3}[sample]
        assert f'fedlearn_run_{sample}{{run="r1"}} {value}' in samples
    assert "fedlearn_nodes_online 3" in samples
    assert "fedlearn_superlink_restarts 2" in samples


def test_nothing_of_a_model_or_of_records_is_counted(home, run):
    folder = RunFolder(home.folder / "runs" / "r1")
    assert "4711" not in text_of(home, run)
    assert rounds_after(folder, 0) == [{"round": 1, "attempt": 2, "asked": 4, "survivors": 3}]
    assert rounds_after(folder, 1) == []


def test_without_a_run_there_is_something_to_read(home):
    runs = Runs(home.database_path)
    assert "fedlearn_run_" not in text_of(home, runs)
    assert 'fedlearn_runs{state="running"} 0' in text_of(home, runs)


def test_the_endpoint_answers_one_path_on_the_loopback_and_tells_no_error():
    (port,) = free_ports(1)
    answers = ["fedlearn_members 4\n"]
    endpoint = MetricsEndpoint(port, lambda: answers.pop())

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert get("/other") == (404, "")
    assert get("/metrics") == (200, "fedlearn_members 4\n")
    assert get("/metrics") == (503, ""), "an error's text stays here"
    with pytest.raises(ConfigError, match=f"port {port} cannot be listened at"):
        MetricsEndpoint(port, str)
    endpoint.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


class TestAServicesLog:
    def test_sentences_by_default(self, monkeypatch, capsys):
        monkeypatch.delenv("FEDLEARN_LOG", raising=False)
        begin_log()
        tell("run r1 begins", run="r1")
        assert not tell_error("why")
        assert capsys.readouterr().err == "run r1 begins\n"

    def test_another_word_is_refused(self, monkeypatch):
        monkeypatch.setenv("FEDLEARN_LOG", "xml")
        with pytest.raises(ConfigError, match=r"\$FEDLEARN_LOG is xml; expected json or text"):
            begin_log()

    def test_json_lines_with_the_facts_by_themselves_and_of_an_uncaught_error_its_kind_alone(self):
        code = (
            "import threading\nfrom fedlearn.host.logs import begin_log, tell, tell_error\n"
            "def fail(): raise ValueError('patient-4711')\n"
            "begin_log(); tell('round 3 of 5 is done', run='r1', round=3); assert tell_error('why')\n"
            "t = threading.Thread(target=fail); t.start(); t.join(); fail()\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], env={"FEDLEARN_LOG": "json", "PATH": ""}, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [line["level"] for line in lines] == ["info", "error", "critical", "critical"]
        assert lines[0] | {"message": "round 3 of 5 is done", "run": "r1", "round": 3} == lines[0]
        assert lines[3]["exception"] == "ValueError"
        assert "4711" not in ended.stderr
        assert ended.returncode == 1
