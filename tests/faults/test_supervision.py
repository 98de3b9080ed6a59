"""What ends or hangs on a holder's machine, decided with a clock of our own or tried with processes of a line each."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlearn.crypto.certificates import Authority
from fedlearn.deployment.clock import check_offset, offset_to
from fedlearn.deployment.parts import BackOff, Part
from fedlearn.deployment.supervisor import STATE_FILE, why_node_ended
from fedlearn.errors import ConfigError
from fedlearn.flower.supernode import Watch
from fedlearn.host.heartbeat import PULSE, STARTING, Silence
from fedlearn.host.process_tree import is_stopped

STAYS = "import sys; print('up'); sys.stdin.read()"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestF4AndF8SuperNodeWorksOrEnds:
    def watch(self, *lines: bytes) -> tuple[Watch, Clock, list[bytes]]:
        clock, below = Clock(), list(lines)
        return Watch(lambda: below, lambda: b"stopped" in below, clock), clock, below

    def test_f4_an_executor_that_ended_is_a_problem_one_that_is_not_there_yet_is_none(self):
        watch, _, below = self.watch()
        assert watch.problem() is None
        below.append(b"python\0flower-superexec\0--insecure")
        assert watch.problem() is None
        below.clear()
        assert watch.problem() == "its SuperExec has ended"

    def test_f4_a_process_below_that_is_stopped_for_half_a_minute_is_a_problem(self):
        watch, clock, below = self.watch(b"stopped")
        assert watch.problem() is None
        clock.now += 29
        assert watch.problem() is None
        clock.now += 2
        assert watch.problem() == "one of its processes is stopped"
        below.clear()
        assert watch.problem() is None
        below.append(b"stopped")
        assert watch.problem() is None

    def test_f4_a_node_that_the_coordinator_does_not_answer_is_not_well_however_alive_it_is(self):
        watch, clock, _ = self.watch()
        clock.now += 59  # it may take so long to start, and is let in by nobody yet
        assert watch.is_starting()
        assert not watch.is_well()
        clock.now += 2
        assert not watch.is_starting()
        watch.polled(None)
        assert not watch.is_starting()
        clock.now += 19
        assert watch.is_well()
        clock.now += 2
        assert not watch.is_well()
        watch.polled(None)
        assert watch.is_well()

    def test_f4_a_node_that_works_on_a_message_does_not_poll_and_is_well_until_its_time_is_over(self):
        watch, clock, _ = self.watch()
        watch.polled(600)
        clock.now += 629
        assert watch.is_well()
        clock.now += 2
        assert not watch.is_well()

    def test_a_node_polls_often_while_a_run_goes_on_and_else_four_times_less(self):
        watch, clock, _ = self.watch()
        assert watch.pause() == 1.0
        watch.polled(60)
        watch.polled(None)
        assert watch.pause() == 0.25
        clock.now += 301
        watch.polled(None)
        assert watch.pause() == 1.0

    def test_f8_a_messages_process_that_outlives_its_message_by_half_a_minute_hangs(self):
        watch, clock, below = self.watch(b"flower-superexec", b"flwr-clientapp")
        assert watch.problem() is None
        watch.polled(60)
        clock.now += 89
        assert watch.problem() is None
        clock.now += 2
        assert watch.problem() == "a message's process hangs"
        below.pop()
        assert watch.problem() is None

    def test_f8_the_next_message_has_its_own_time(self):
        watch, clock, _ = self.watch(b"flwr-clientapp")
        watch.polled(60)
        clock.now += 80
        watch.polled(60)
        clock.now += 80
        assert watch.problem() is None


def test_f4_what_was_not_heard_of_for_a_minute_is_silent_and_a_start_is_a_sign(tmp_path):
    clock = Clock()
    part = script(tmp_path, "node", STAYS)
    part.silence = Silence(clock=clock)
    clock.now += 61
    assert part.silence.is_long
    part.start()
    assert not part.silence.is_long
    clock.now += 59
    assert not part.silence.is_long
    clock.now += 2
    assert part.silence.is_long
    part.end()


def test_f4_a_sign_of_life_is_heard_and_stands_in_no_log(tmp_path):
    part = script(tmp_path, "node", f"print('{PULSE}'); {STAYS}")
    clock = Clock()
    part.silence = Silence(clock=clock)
    part.start()
    clock.now += 61
    wait_for(lambda: not part.silence.is_long or "up" in part.lines)
    assert list(part.lines) in ([], ["up"])
    part.end()
    assert PULSE not in (tmp_path / "node.jsonl").read_text()


def test_a_part_is_up_when_it_said_that_it_does_what_it_is_for(tmp_path):
    part = script(tmp_path, "node", f"print('{STARTING}'); print('up'); input(); print('{PULSE}'); {STAYS}")
    part.start()
    wait_for(lambda: "up" in part.lines)
    assert part.is_alive
    assert not part.is_up
    part.process.stdin.write(b"\n")
    part.process.stdin.flush()
    wait_for(lambda: part.is_up)
    part.end()
    assert not part.is_up
    assert STARTING not in (tmp_path / "node.jsonl").read_text()


@pytest.mark.lengthy
def test_a_node_whose_coordinator_does_not_answer_is_not_up_and_says_so(tmp_path):
    starting = f"import sys; print('{STARTING}'); {STAYS}"
    supervised = Supervised(tmp_path, GIVES_A_PULSE, starting, silence=1)

    def parts():
        return json.loads((tmp_path / STATE_FILE).read_text())["parts"] if (tmp_path / STATE_FILE).exists() else {}

    wait_for(lambda: parts().get("node", {}).get("problem"))
    assert parts()["agent"]["up"]
    told = parts()["node"]
    assert (told["alive"], told["up"]) == (True, False)
    assert told["problem"] == "the coordinator at 127.0.0.1:1 does not answer, so the node is not let in"
    out, _ = supervised.end()
    assert out.count("is not let in") == 1


def test_f4_a_sign_of_life_in_the_middle_of_a_line_leaves_the_line_as_it_was(tmp_path):
    part = script(tmp_path, "node", f"import os; os.write(1, b'half a line{PULSE}\\n\\nend\\n'); {STAYS}")
    part.start()
    wait_for(lambda: "up" in part.lines)
    part.end()
    assert list(part.lines) == ["half a line", "end", "up"]


def test_f4_what_is_stopped_ends_in_order_when_it_is_told_to(tmp_path):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + STAYS
    part = script(tmp_path, "agent", code)
    part.start()
    assert part.process is not None
    wait_for(lambda: "up" in part.lines)
    os.kill(part.process.pid, signal.SIGSTOP)
    wait_for(lambda: is_stopped(part.process.pid))
    began = time.monotonic()
    part.end()
    assert part.process.returncode == 7
    assert time.monotonic() - began < 5


class TestF5StartingAgain:
    def test_f5_a_lease_of_a_minute_is_waited_for_and_is_no_failure(self):
        clock = Clock()
        back_off, starts = BackOff(clock), []
        while clock.now < 1060:  # Flower refuses a killed node at once for 59 s
            clock.now = back_off.next_start(lived=0.5)
            starts.append(clock.now - 1000)
            assert not back_off.is_failure
            clock.now += 0.5
        assert 5 <= len(starts) <= 12
        assert all(later - earlier <= 16 for earlier, later in itertools.pairwise(starts))

    def test_after_two_minutes_in_vain_it_is_a_failure_and_still_tried(self):
        clock = Clock()
        back_off = BackOff(clock)
        while clock.now < 1125:
            clock.now = back_off.next_start(lived=0.5) + 0.5
        assert back_off.is_failure
        assert back_off.next_start(lived=0.5) - clock.now <= 15

    def test_what_worked_for_a_minute_is_started_again_at_once(self):
        clock = Clock()
        back_off = BackOff(clock)
        for _ in range(20):
            clock.now = back_off.next_start(lived=0.5)
        clock.now += 600
        assert back_off.next_start(lived=600) - clock.now <= 1
        assert not back_off.is_failure


class TestF6TheClock:
    @pytest.mark.parametrize("offset", [0.0, 1.9, -1.9])
    def test_a_good_one_is_not_spoken_of(self, offset):
        assert check_offset(offset) is None

    @pytest.mark.parametrize("offset", [3.0, -60.0, -239.0])
    def test_a_worse_one_is_a_warning(self, offset):
        assert "clock" in (check_offset(offset) or "")

    @pytest.mark.parametrize(
        ("offset", "way"), [(4.5, "ahead of"), (6.0, "ahead of"), (-241.0, "behind"), (-310.0, "behind")]
    )
    def test_f6_one_that_flower_would_turn_away_is_refused_in_one_sentence(self, offset, way):
        with pytest.raises(ConfigError, match=way):
            check_offset(offset)

    def test_nobody_there_is_no_offset(self, tmp_path):
        (tmp_path / "ca.crt").write_bytes(Authority.new().certificate.pem)
        assert offset_to("127.0.0.1:1", tmp_path / "ca.crt") is None


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Exit Code: 305 [code: 2004] Failed to activate SuperNode.", "does not let this node in"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "certificate"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "plain text"),
        ("HTTPStatusError: 401 Unauthorized", "clock is off, or the key was revoked"),
        ("fedlearn: SuperNode is not what it should be: its main loop has ended", "its main loop has ended"),
        ("ImportError: flwr.x of this Flower has no uvicorn; install", "the flwr that is installed here does not fit"),
        ("", "it ended with code 0"),
    ],
)
def test_f7_why_a_node_ended_is_named_whatever_its_exit_code(said, meaning):
    assert meaning in why_node_ended(["something before", said], 0)


TURNED_AWAY = """
import importlib, signal
import httpx
cli = importlib.import_module("flwr.supernode.cli.flower_supernode")
from fedlearn.flower import supernode
from flwr.supercore.retry.http_retry import make_simple_http_retry_invoker

def call():
    asked = httpx.Request("POST", "https://localhost/v1/fleet/pull-messages")
    raise httpx.HTTPStatusError("no", request=asked, response=httpx.Response(401, request=asked))

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.flower_supernode = lambda: make_simple_http_retry_invoker().invoke(call)
supernode.main()
"""


@pytest.mark.lengthy
def test_f7_a_node_whose_calls_are_turned_away_ends_and_says_so_for_flower_does_not():
    command, (listened, held) = [sys.executable, "-c", TURNED_AWAY], os.pipe()  # it ends when its input does
    ended = subprocess.run(command, stdin=listened, capture_output=True, text=True, timeout=60, check=False)
    os.close(listened)
    os.close(held)
    assert "clock is off, or the key was revoked" in why_node_ended(ended.stderr.splitlines(), ended.returncode)


def script(place: Path, name: str, code: str, silence: float = 60.0) -> Part:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    back_off = BackOff(longest=0.1)
    log, command = place / f"{name}.jsonl", [sys.executable, "-c", code]
    return Part(name, command, environment, log, back_off=back_off, silence=Silence(silence))


CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"


STARTED: list["subprocess.Popen[str]"] = []


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    while STARTED:
        STARTED.pop().terminate()


class Supervised:
    """A supervisor in a process of its own: what it looks after are children of that process."""

    def __init__(self, place: Path, agent: str, node: str, *, answers: str = "True", silence: float = 60) -> None:
        code = (
            "import signal, sys, threading\nfrom pathlib import Path\n"
            "from tests.faults.test_supervision import script\n"
            "from fedlearn.deployment.supervisor import Supervisor\nfrom fedlearn.errors import FedlearnError\n"
            "place = Path(sys.argv[1]); stop = threading.Event()\n"
            "signal.signal(signal.SIGTERM, lambda *_: stop.set())\n"
            f"agent, node = (script(place, n, c, {silence}) for n, c in zip(('agent', 'node'), sys.argv[2:4]))\n"
            f"s = Supervisor(place, agent=agent, node=node, agent_answers=lambda: {answers},\n"
            "    policy_sha256=None, address='127.0.0.1:1',\n"
            "    tell=lambda line, **facts: print(line, flush=True))\n"
            "try:\n    s.run(stop)\nexcept FedlearnError as error:\n    sys.exit(f'{type(error).__name__}: {error}')\n"
        )
        (place / "ca.crt").write_bytes(Authority.new().certificate.pem)
        command = [sys.executable, "-c", code, str(place), agent, node]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[2])
        STARTED.append(self.process)

    def end(self) -> tuple[str, str]:
        self.process.terminate()
        return self.process.communicate(timeout=60)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs_of(log: Path) -> int:
    return log.read_text().count('"up"') if log.exists() else 0


@pytest.mark.lengthy
def test_f7_a_node_that_exits_with_0_is_started_again_and_told_of_once(tmp_path):
    supervised = Supervised(tmp_path, STAYS, "print('up'); print('HTTPStatusError: 401 Unauthorized')")
    wait_for(lambda: runs_of(tmp_path / "node.jsonl") >= 3)
    assert runs_of(tmp_path / "agent.jsonl") == 1
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert "401" not in json.dumps(state["parts"])
    supervised.end()
    assert not (tmp_path / STATE_FILE).exists()


GIVES_A_PULSE = (
    f"import os, sys; from fedlearn.host.heartbeat import give_pulse; give_pulse(lambda: True, every=0.1); {STAYS}"
)


@pytest.mark.slow
def test_f4_a_part_that_is_there_and_stopped_is_started_again_but_no_node_while_the_coordinator_is_away(tmp_path):
    pid = "open('{}', 'w').write(str(__import__('os').getpid())); "
    files = {name: tmp_path / f"{name}.pid" for name in ("agent", "node")}
    codes = [pid.format(file) + GIVES_A_PULSE for file in files.values()]
    supervised = Supervised(tmp_path, *codes, silence=2)
    wait_for(lambda: runs_of(tmp_path / "node.jsonl") == 1)
    time.sleep(3)
    assert runs_of(tmp_path / "agent.jsonl") == 1
    for file in files.values():
        os.kill(int(file.read_text()), signal.SIGSTOP)
    wait_for(lambda: runs_of(tmp_path / "agent.jsonl") == 2)
    time.sleep(3)
    assert runs_of(tmp_path / "agent.jsonl") == 2
    assert runs_of(tmp_path / "node.jsonl") == 1
    out, _ = supervised.end()
    assert "the agent: it gave no sign of life; it is tried again" in out


@pytest.mark.lengthy
def test_at_the_end_nothing_that_was_started_runs(tmp_path):
    marked = f"import os; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    supervised = Supervised(tmp_path, marked + STAYS, marked + CHILD + STAYS)
    wait_for(lambda: runs_of(tmp_path / "node.jsonl") == 1)
    supervised.end()
    for process in (tmp_path / "pids").read_text().split():
        assert not Path(f"/proc/{process}").exists()
    assert supervised.process.returncode == 0


def test_a_damaged_certificate_of_the_authority_is_a_sentence(tmp_path):
    (tmp_path / "ca.crt").write_text("x")
    with pytest.raises(ConfigError, match=r"ca.crt: not a certificate in PEM form; restore it from a backup"):
        offset_to("127.0.0.1:1", tmp_path / "ca.crt")


@pytest.mark.lengthy
def test_an_agent_that_refuses_to_start_is_told_in_its_own_words_and_no_node_runs(tmp_path):
    refusal = json.dumps({"level": "error", "message": "the key lets others read it"})
    supervised = Supervised(tmp_path, f"import sys; print({refusal!r}); sys.exit(2)", STAYS, answers="False")
    _, err = supervised.process.communicate(timeout=60)
    assert err.strip() == "ConfigError: the key lets others read it"
    assert runs_of(tmp_path / "node.jsonl") == 0


def test_f19_what_opens_a_nodes_calls_stands_in_no_log(tmp_path):
    part = script(tmp_path, "node", "print('flwr-signature: abcdef'); print('{\"level\": \"info\"}'); print('other')")
    part.start()
    assert part.process is not None
    part.process.wait(30)
    wait_for(lambda: len(part.lines) == 3)
    part.end()
    wait_for(lambda: (tmp_path / "node.jsonl").read_text().count("\n") == 3)
    text = (tmp_path / "node.jsonl").read_text()
    assert "abcdef" not in text
    assert [json.loads(line).get("message") for line in text.splitlines()][1:] == [None, "other"]
    assert (tmp_path / "node.jsonl").stat().st_mode & 0o077 == 0
