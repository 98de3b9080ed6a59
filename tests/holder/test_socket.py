"""The agents' socket: bytes in, bytes out, and nothing that a peer can do ends it."""

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.errors import ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import AgentServer, ask, is_answering

FRAME = Frame("masked", "ab" * 16, 1, 0, b"model")


def echo(client: int, stage: str, frame: bytes) -> bytes:
    return f"{client} {stage} {Frame.from_bytes(frame).body.decode(errors='replace')}".encode()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "s"


@pytest.fixture
def server(path: Path) -> Iterator[AgentServer]:
    with AgentServer(path, echo, clients=10, read_seconds=1.0) as server:
        yield server


def send(path: Path, data: bytes, *, end: bool = True) -> bytes:
    """What a peer gets that sends `data` and, with `end`, nothing more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5.0)
        connection.connect(str(path))
        received = b""
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except ConnectionError:
            pass  # the server closed before it had read everything
        return received


def refusal() -> bytes:
    return len(REFUSAL).to_bytes(8, "big") + REFUSAL


def test_who_only_looks_whether_somebody_listens_is_no_refused_peer(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The holder's own look comes from a user whom the agent answers nothing."""
    with AgentServer(path, echo, clients=1, allowed=lambda _: False):
        assert is_answering(path)
        time.sleep(0.2)
        assert not [record for record in caplog.records if "refused" in record.getMessage()]
        assert send(path, (0).to_bytes(4, "big") + FRAME.to_bytes()) == refusal()
        time.sleep(0.2)
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert told == [f"a peer of user {os.geteuid()} is refused"]


def test_a_request_reaches_its_client_and_the_reply_comes_back(server: AgentServer, path: Path) -> None:
    assert ask(path, 7, FRAME.to_bytes()) == b"7 masked model"


def test_a_megabyte_travels_both_ways(path: Path) -> None:
    body = os.urandom(3 << 20)
    with AgentServer(path, lambda _client, _stage, frame: Frame.from_bytes(frame).body, clients=1):
        assert ask(path, 0, Frame("masked", "ab" * 16, 1, 0, body).to_bytes()) == body


def test_many_requests_at_a_time_are_answered_one_by_one(path: Path) -> None:
    inside, most = 0, 0

    def answer(client: int, _stage: str, _frame: bytes) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1
        return str(client).encode()

    with AgentServer(path, answer, clients=200), ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda client: ask(path, client, FRAME.to_bytes()), range(200)))
    assert replies == [str(client).encode() for client in range(200)]
    assert most == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        bytes(4),
        bytes(8),
        bytes(4) + b"\xff\xff\xff\xff",
        bytes(4) + FRAME.to_bytes()[:-1],
        bytes(4) + (513).to_bytes(4, "big") + bytes(600),
        bytes(4) + FRAME.to_bytes().replace(b"masked", b"maskes"),
        bytes(4) + FRAME.to_bytes().replace(b'{"', b'{ "'),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        (10).to_bytes(4, "big") + FRAME.to_bytes(),
        b"\xff\xff\xff\xff" + FRAME.to_bytes(),
    ],
)
def test_what_is_not_one_frame_for_a_known_client_is_refused(server: AgentServer, path: Path, data: bytes) -> None:
    assert send(path, data) == refusal()
    assert ask(path, 0, FRAME.to_bytes()) == b"0 masked model"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_no_bytes_end_the_server(server: AgentServer, path: Path, data: bytes, cut: int) -> None:
    valid = bytes(4) + FRAME.to_bytes()
    for garbage in (data, valid[:cut] + data):
        send(path, garbage)
    assert ask(path, 1, FRAME.to_bytes()) == b"1 masked model"


def test_a_frame_that_is_too_large_is_refused_before_memory_is_taken(server: AgentServer, path: Path) -> None:
    header = FRAME.to_bytes()[: -len(FRAME.body) - 8]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (1 << 30, 1 << 40, (1 << 64) - 1):
        assert send(path, bytes(4) + header + size.to_bytes(8, "big"), end=False) == refusal()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_memory_grows_only_with_the_bytes_that_came(server: AgentServer, path: Path) -> None:
    header = FRAME.to_bytes()[: -len(FRAME.body) - 8]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allowed = (1 << 30) - len(header) - 8
    assert send(path, bytes(4) + header + allowed.to_bytes(8, "big") + b"few bytes") == refusal()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_peer_of_another_user_is_never_read(path: Path) -> None:
    asked: list[int] = []

    def another_user(uid: int) -> bool:
        asked.append(uid)
        return False

    with AgentServer(path, echo, clients=10, allowed=another_user):
        assert b"masked" not in send(path, bytes(4) + FRAME.to_bytes())
    assert asked == [os.geteuid()]


def test_the_socket_is_open_to_its_user_alone(server: AgentServer, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_silent_peer_loses_its_connection_and_holds_nobody_up(server: AgentServer, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(path))
        assert ask(path, 2, FRAME.to_bytes()) == b"2 masked model"
        silent.settimeout(5.0)
        assert silent.recv(1) == b""


def test_more_silent_peers_than_places_only_delay(path: Path) -> None:
    with AgentServer(path, echo, clients=10, read_seconds=0.3):
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(80)]
        for peer in silent:
            peer.connect(str(path))
        assert ask(path, 3, FRAME.to_bytes(), seconds=5.0) == b"3 masked model"
        for peer in silent:
            peer.close()


def test_an_answer_that_raises_costs_one_connection(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: raised.append(told.exc_type))

    def answer(client: int, stage: str, frame: bytes) -> bytes:
        if client == 0:
            raise ZeroDivisionError
        return echo(client, stage, frame)

    with AgentServer(path, answer, clients=10):
        with pytest.raises(ProtocolError, match="too early"):
            ask(path, 0, FRAME.to_bytes())
        assert ask(path, 1, FRAME.to_bytes()) == b"1 masked model"
    assert raised == [ZeroDivisionError]


def test_nobody_answers_after_the_end(path: Path) -> None:
    with AgentServer(path, echo, clients=10):
        assert is_answering(path)
    assert not is_answering(path)
    with pytest.raises(ProtocolError, match="does not answer"):
        ask(path, 0, FRAME.to_bytes())


@pytest.mark.timeout(20)
def test_whoever_takes_all_places_holds_up_nobody_who_only_asks_whether_somebody_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        peers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for peer in peers:
            peer.setblocking(False)
            peer.connect_ex(str(path))
        assert is_answering(path)
        for peer in peers:
            peer.close()


def test_the_end_waits_for_the_request_under_way(path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    def answer(_client: int, _stage: str, _frame: bytes) -> bytes:
        started.set()
        time.sleep(0.3)
        ended.set()
        return b""

    with ThreadPoolExecutor(1) as pool:
        with AgentServer(path, answer, clients=1):
            asking = pool.submit(ask, path, 0, FRAME.to_bytes())
            started.wait(5.0)
        assert ended.is_set()
        assert asking.result(5.0) == b""


def test_a_reply_longer_than_the_cap_is_refused_before_memory_is_taken(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def lie() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)  # closing with bytes unread would reset the connection under the asker
                connection.sendall((1 << 50).to_bytes(8, "big"))

        liar = threading.Thread(target=lie)
        liar.start()
        with pytest.raises(ProtocolError, match="expected at most"):
            ask(path, 0, FRAME.to_bytes())
        liar.join()
