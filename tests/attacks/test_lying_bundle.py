"""A bundle that does not only carry bytes: it runs on the holder's machine, under the node's user, and gets nothing."""

import grp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import is_answering
from tests.holder_files import FOUR, client_id, write_policy

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs two users, so root on Linux"
)

SESSION = "ab" * 16
NODE = 65534  # nobody
LIAR = Path(__file__).with_name("lying_bundle.py")


@pytest.fixture(scope="module")
def agent() -> Iterator[tuple[Path, int]]:
    """A deployed agent, its folder closed, its socket in a folder that the node's group may enter; its process."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        folder = Path(place)
        policy = write_policy(folder / "client", {"socket": f'"{folder}/door/agent.sock"'})
        (folder / "client" / "patients.csv").write_text("age,diagnosis\n47,positive\n")
        (folder / "client").chmod(0o700)
        (folder / "door").mkdir(mode=0o750)
        os.chown(folder / "door", -1, NODE)
        folder.chmod(0o755)
        command = [sys.executable, "-m", "fedlearn.holder.deployed", str(policy), "--group", grp.getgrgid(NODE).gr_name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not is_answering(folder / "door" / "agent.sock"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield folder, process.pid
            process.kill()  # who was traced may be stopped


def advertise(*overrides: str) -> bytes:
    config = RunConfig.load("digits", [*FOUR, *overrides]).to_bytes()
    return bytes(209) + len(config).to_bytes(4, "big") + config


@pytest.mark.lengthy
def test_it_reads_nothing_traces_nothing_and_is_refused_whatever_it_asks(agent):
    folder, process = agent
    asks = {
        "who is there": Frame("identify", SESSION, 0, 0, b"?"),
        "another mode": Frame("advertise", SESSION, 1, 0, advertise("privacy.mode=none")),
        "no masks": Frame("advertise", SESSION, 1, 0, advertise("secure_aggregation.masking=false")),
        "another model": Frame("advertise", SESSION, 1, 0, advertise("model.name=mlp")),
        "less noise": Frame("advertise", SESSION, 1, 0, advertise("privacy.target_epsilon=50")),
        "more rounds than the budget": Frame("advertise", SESSION, 1, 0, advertise("run.rounds=100000")),
        "another context than its configuration": Frame("advertise", SESSION, 1, 0, advertise()),
        "raw data without a beginning": Frame("masked", SESSION, 1, 0, b"give me the records"),
        "shares without a beginning": Frame("unmask", SESSION, 1, 0, b""),
        "another round": Frame("consistency", SESSION, 7, 3, b"\xff"),
        "a signature over a model of its own": Frame("attest", SESSION, 2, 0, bytes(2600)),
    }
    frames = [frame.to_bytes() for frame in asks.values()] + [b"\xff" * 40, b"{}"]
    command = [sys.executable, str(LIAR), str(NODE), str(folder), str(process), *(frame.hex() for frame in frames)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    assert [line for line in told if line.startswith("GOT")] == []
    replies = [bytes.fromhex(line.split()[2]) for line in told]
    assert replies[0].startswith(client_id(0)), "who it is, it says to everybody"
    for name, reply in zip([*asks, "garbage", "json"], replies, strict=True):
        if name in ("garbage", "json"):
            assert reply == REFUSAL or b"reset" in reply, "it may be cut off while it still talks"
        elif name != "who is there":
            assert reply.startswith(REFUSAL), name
            assert len(reply) == 80, name


@pytest.mark.lengthy
def test_the_test_bites_as_the_agents_own_user_it_gets_the_files(agent):
    """Without two users the same bundle reads everything: what the second user is for."""
    folder, process = agent
    command = [sys.executable, str(LIAR), "0", str(folder), str(process)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert f"GOT: {folder}/client/patients.csv" in told
    assert f"GOT: {folder}/client/identity.key" in told


def test_an_agent_leaves_no_core_dump_and_its_memory_to_root_alone():
    script = (
        "import ctypes, resource\n"
        "from fedlearn.holder.secrecy import close_to_others\n"
        "close_to_others()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "0 (0, 0)\n"
