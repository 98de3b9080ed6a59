"""The gate before Flower's SuperLink: nodes come in, and whoever else only by the coordinator's own socket."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.flower.programs import private_folder
from fedlearn.flower.superlink_gate import Gate

FLEET, CONTROL, RUNTIME = "/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task"
OWN = Path("/run/own.sock")


def answer(path, *, client=("10.0.0.9", 5000), server=("10.0.0.1", 8443), body=(b"",), length=None, most=100, own=OWN):
    """Status and what the application read, for a request; 200 is the application's own."""
    read, sent = [], []
    parts = [{"type": "http.request", "body": part, "more_body": n < len(body) - 1} for n, part in enumerate(body)]

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 200})
                return

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "client": client, "server": server, "headers": headers}
    asyncio.run(Gate(app, own, most)(scope, receive, send))
    return next((message["status"] for message in sent if "status" in message), None), b"".join(read)


def test_a_node_from_anywhere_gets_through():
    assert answer(FLEET, body=(b"abc",)) == (200, b"abc")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME, "/docs", "/", "/v1/fleetx", "/health"])
def test_another_machine_gets_to_nothing_else(path):
    assert answer(path, body=(b"abc",)) == (403, b"")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME])
def test_who_comes_by_the_own_socket_gets_through(path):
    assert answer(path, body=(b"abc",), client=None, server=(str(OWN), None)) == (200, b"abc")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME])
@pytest.mark.parametrize("end", [("127.0.0.1", 8443), ("::1", 8443), (str(OWN) + "x", None), ("", None), None])
def test_who_does_not_gets_nothing(path, end):
    for client in (("127.0.0.1", 5000), (str(OWN), 0), None):
        assert answer(path, body=(b"abc",), client=client, server=end) == (403, b"")


@pytest.mark.parametrize("end", [("127.0.0.1", 8443), (str(OWN), None), (None, None), None])
def test_without_an_own_socket_nobody_does(end):
    assert answer(CONTROL, client=None, server=end, own=None) == (403, b"")


# Started as Flower starts it, and as `superlink_gate` has it started; what the application is given, it writes down.
SERVER = """
import sys
from pathlib import Path
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from fedlearn.flower.superlink_gate import Gate, serve

async def start_run(request):
    print("RAN", await request.body(), flush=True)
    return PlainTextResponse("run started")

own = Path(sys.argv[2]) if len(sys.argv) > 2 else None
gate = Middleware(Gate, own_socket=own)
app = Starlette(routes=[Route("/v1/control/start-run", start_run, methods=["POST"])], middleware=[gate])
options = dict(host="127.0.0.1", port=int(sys.argv[1]), reload=False, access_log=True, workers=1)
uvicorn.run(app=app, **options) if own is None else serve(app=app, own_socket=own, **options)
"""

# Another user of this machine: a plain request, one in the name of each connection that is there, many that are closed
# at once, and the socket.
ATTACKER = """
import json, socket, sys, time
port, own, victims = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def request(extra, body):
    head = f"POST /v1/control/start-run HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n{extra}\\r\\n"
    return head.encode() + body

def ask(extra, body):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request(extra, body))
        return connection.recv(200).split(b" ")[1].decode()

codes = [ask("", b"plain")]
for victim in victims:
    codes.append(ask(f"X-Forwarded-For: 127.0.0.1:{victim}\\r\\n", b"spoofed"))
    codes.append(ask(f"X-Forwarded-For: {own}\\r\\nX-Forwarded-Host: {own}\\r\\nForwarded: for={own}\\r\\n", b"named"))
for n in range(60):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("", b"orphan"))
time.sleep(0.5)
try:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(own)
    codes.append("connected")
except OSError as error:
    codes.append(type(error).__name__)
print(json.dumps(codes))
"""


class Served:
    """A server process with the gate; `own` is its socket, where it has one."""

    def __init__(self, own: Path | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.own = own
        command = [sys.executable, "-c", SERVER, str(self.port), *([str(own)] if own else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self) -> list[str]:
        """End it; what the application was given."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=30)
        return [line for line in said.splitlines() if line.startswith("RAN")]


@pytest.fixture(params=["as Flower has it", "as fedlearn has it"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    folder = private_folder()
    made = Served(folder / "own.sock" if request.param == "as fedlearn has it" else None)
    yield made
    made.end()
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.lengthy
def test_another_user_of_this_machine_gets_to_nothing_whatever_it_says_and_however_soon_it_is_gone(served, tmp_path):
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    with socket.create_connection(("127.0.0.1", served.port)) as coordinators:
        victims = json.dumps([coordinators.getsockname()[1]])
        command = [python, "-c", ATTACKER, str(served.port), str(served.own or "/nowhere"), victims]
        told = subprocess.run(command, user=65534, group=65534, capture_output=True, text=True, timeout=60, check=True)
    *codes, socket_told = json.loads(told.stdout)
    assert codes == ["403"] * 3
    assert socket_told == ("FileNotFoundError" if served.own is None else "PermissionError")
    assert served.end() == []


@pytest.mark.lengthy
def test_the_coordinators_own_user_gets_through_by_the_socket_and_not_by_the_port():
    folder = private_folder()
    served = Served(folder / "own.sock")
    request = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nown"
    for family, place in ((socket.AF_UNIX, str(served.own)), (socket.AF_INET, ("127.0.0.1", served.port))):
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.connect(place)
            connection.sendall(request)
            code = connection.recv(200).split(b" ")[1]
        assert code == (b"200" if family is socket.AF_UNIX else b"403")
    assert served.end() == ["RAN b'own'"]
    shutil.rmtree(folder)


def test_f18_a_body_that_is_too_long_is_not_handed_on():
    assert answer(FLEET, length=101) == (413, b"")
    assert answer(FLEET, length=100, body=(b"a" * 100,)) == (200, b"a" * 100)
    assert answer(FLEET, body=(b"a" * 60, b"b" * 60)) == (None, b"a" * 60)  # it did not say how long
    stated = [(b"content-length", b"many")]
    assert answer(FLEET, length=stated[0][1].decode()) == (413, b"")
