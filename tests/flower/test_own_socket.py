"""Flower's processes on one machine reach each other where no other user can, and by no proxy."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.supercore.retry import http_retry
from packaging.requirements import Requirement

from fedlearn.flower.own_socket import SOCKET_VARIABLE, replace_in
from fedlearn.flower.programs import flower_environment, private_folder
from fedlearn.host.process_tree import descendants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a client runs on Linux alone")

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "ftp_proxy")


def everywhere(address: str) -> dict[str, str]:
    """An environment in which this proxy is named in every way."""
    return {name: address for proxy in PROXIES for name in (proxy, proxy.upper())}


TAKES_A_TASK = """
import sys
from pathlib import Path
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.runtime import RuntimeHttpClient
from fedlearn.flower.own_socket import go_directly

go_directly(Path(sys.argv[1]))
client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [])
print("a task" if client.AcquireTask(AcquireTaskRequest()).HasField("task") else "no task")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A SuperNode whose coordinator does not answer, and its SuperExec."""
    command = [sys.executable, "-P", "-m", "fedlearn.flower.supernode", "--superlink", "127.0.0.1:1", "--insecure"]
    with (tmp_path / "log").open("wb") as log:
        environment = flower_environment(tmp_path / "flwr")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        yield process
        process.terminate()
        process.wait(30)


def socket_of(node: "subprocess.Popen[bytes]") -> Path:
    """Where its processes are told to find it."""
    deadline = time.monotonic() + 60
    while True:
        for process in descendants(node.pid):
            told = b""
            with suppress(FileNotFoundError, ProcessLookupError):  # it may be gone by now
                told = Path(f"/proc/{process}/environ").read_bytes()
            for line in told.split(b"\0"):
                path = Path(line.partition(b"=")[2].decode())
                if line.startswith(SOCKET_VARIABLE.encode()) and path.exists():
                    return path
        assert time.monotonic() < deadline
        time.sleep(0.1)


def listened_at(processes: list[int]) -> list[str]:
    """The ports of this machine at which one of them listens, as the kernel writes them."""
    held = {
        str(fd.readlink()) for process in processes for fd in Path(f"/proc/{process}/fd").iterdir() if fd.is_symlink()
    }
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in held]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.lengthy
def test_a_holders_node_opens_no_port_and_gives_its_tasks_to_nobody_else(node: "subprocess.Popen[bytes]") -> None:
    path = socket_of(node)
    assert listened_at([node.pid, *descendants(node.pid)]) == []
    own = [sys.executable, "-c", TAKES_A_TASK, str(path)]
    assert subprocess.run(own, capture_output=True, text=True, timeout=60, check=True).stdout == "no task\n"
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    other = subprocess.run([python, "-c", code], user=65534, group=65534, capture_output=True, text=True, timeout=30)
    assert "PermissionError" in other.stderr


@pytest.mark.lengthy
@pytest.mark.parametrize("how", [pytest.param("in order", marks=pytest.mark.slow), "for whoever started it is gone"])
def test_a_node_that_ends_leaves_no_folder(node: "subprocess.Popen[bytes]", how: str) -> None:
    folder = socket_of(node).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    if how == "in order":
        node.terminate()
    else:
        assert node.stdin is not None
        node.stdin.close()
    node.wait(30)
    assert not folder.exists()


@pytest.mark.lengthy
def test_flowers_clients_use_no_proxy_however_the_environment_names_one() -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(100).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        code = TAKES_A_TASK.replace("Path(sys.argv[1])", "None").replace("127.0.0.1:1", f"127.0.0.1:{port}")
        environment = os.environ | everywhere(f"http://127.0.0.1:{proxy.getsockname()[1]}")
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, text=True
        )
        assert "503" in ended.stderr
        with pytest.raises(TimeoutError):
            proxy.accept()
    assert asked == [b"POST /v1/runtime/acquire-task HTTP/1.1"]


def test_flowers_programs_are_told_of_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, address in everywhere("socks5://127.0.0.1:9").items():
        monkeypatch.setenv(name, address)
    given = flower_environment(tmp_path)
    told = {name for name in given if name.lower() in PROXIES}
    assert told == set(), json.dumps(sorted(told))


def test_a_flower_in_which_a_replacement_would_do_nothing_is_refused() -> None:
    with pytest.raises(ImportError, match=r"http_retry of this Flower has no uvicorn; install the flwr of"):
        replace_in(http_retry, uvicorn=None)


def test_sockets_have_room_however_deep_the_temporary_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = private_folder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "superlink.sock"))
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "superlink.sock").unlink()
    folder.rmdir()


def test_a_flower_that_was_not_tried_is_not_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["ray"]]]
    ranges = [requirement.specifier for requirement in declared if requirement.name == "flwr"]
    tried = [[version in allowed for version in ("1.40.0", "1.41.0", "1.42.0", "1.43.0")] for allowed in ranges]
    assert tried == [[False, True, True, False]] * 2
