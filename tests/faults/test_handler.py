"""The handler that a bundle runs on a node: a pipe that ends in time and tells nothing."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from fedlearn.flower import node_app
from fedlearn.flower.in_process_grid import make_message
from fedlearn.flower.records import pack, unpack
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import AgentServer

# All that a message's process may import of fedlearn.
OF_THE_PIPE = {
    "fedlearn",
    "fedlearn.holder",
    "fedlearn.holder.frames",
    "fedlearn.holder.socket",
    "fedlearn.bounded",
    "fedlearn.canonical",
    "fedlearn.crypto",
    "fedlearn.crypto.labels",
    "fedlearn.errors",
    "fedlearn.flower",
    "fedlearn.flower.client_app",
    "fedlearn.flower.node_app",
    "fedlearn.flower.records",
    "fedlearn.stages",
}
FRAME = Frame("masked", "ab" * 16, 1, 0, b"model").to_bytes()


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        yield Path(place) / "agent.sock"


def send(path: Path, seconds: float = 5.0, content: RecordDict | None = None) -> Message:
    context = Context(
        run_id=0, node_id=1, node_config={node_app.SOCKET_KEY: str(path)}, state=RecordDict(), run_config={}
    )
    message = make_message(pack(FRAME) if content is None else content, "train.masked", 1, "", seconds)
    return node_app.app(message, context)


def test_it_carries_the_frame_to_the_agent_and_the_answer_back(path):
    with AgentServer(path, lambda client, stage, frame: frame + bytes([client]), clients=1):
        assert unpack(send(path).content) == FRAME + b"\0"


def test_f8_an_agent_that_hangs_gets_the_constant_refusal_in_time(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        began = time.monotonic()
        reply = send(path, seconds=0.3)
        assert time.monotonic() - began < 2
    assert not reply.has_error()
    assert unpack(reply.content) == REFUSAL


@pytest.mark.parametrize(
    "error", [ValueError("patient-4711 ..."), MemoryError("patient-4711"), SystemExit("patient-4711"), OSError(4711)]
)
def test_f9_whatever_is_raised_the_reply_is_the_constant_refusal(path, monkeypatch, capfd, error):
    def broken(*arguments: object, **options: object) -> bytes:
        raise error

    monkeypatch.setattr(node_app, "ask", broken)
    reply = send(path)
    assert not reply.has_error()
    assert unpack(reply.content) == REFUSAL
    assert "4711" not in "".join(capfd.readouterr())


def test_f9_no_agent_and_a_message_of_another_shape_get_the_same(path):
    assert unpack(send(path).content) == REFUSAL
    for content in (RecordDict(), RecordDict({"other": pack(b"x")["fedlearn"]})):
        assert unpack(send(path, content=content).content) == REFUSAL


def test_the_process_of_a_message_imports_of_fedlearn_the_pipe_alone():
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from clients.app import app\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    told = subprocess.run(
        [sys.executable, "-c", script, root],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    loaded = set(json.loads(told.stdout))
    assert not loaded & {"torch", "opacus", "sklearn", "scipy", "dp_accounting"}
    own = {name for name in loaded if name.partition(".")[0] == "fedlearn"}
    assert own == OF_THE_PIPE
