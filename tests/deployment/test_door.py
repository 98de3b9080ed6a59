"""Joining while others hold connections, over real sockets: silent, half a request, many at a time."""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from server_files import invited, new_home

from fedlearn.enrolment import door, joining
from fedlearn.enrolment.door import origin_of
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.join_endpoint import JoinEndpoint


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "operator")


@pytest.fixture
def endpoint(home) -> Iterator[JoinEndpoint]:
    federation = Federation(home.database_path)
    served = JoinEndpoint(home, federation)
    yield served
    served.close()
    federation.close()


@pytest.fixture
def open_ones() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found: list[socket.socket] = []
        yield found
        for connection in found:
            stack.enter_context(connection)


def raw(home) -> socket.socket:
    return socket.create_connection(("127.0.0.1", home.join_port), timeout=30)


def tls(home) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(home.authority_path))
    return context.wrap_socket(raw(home), server_hostname="127.0.0.1")


HALF = b"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{"


@pytest.mark.parametrize("what", ["no handshake", "no request", "half a head", "half a body", "a whole request"])
def test_seventy_that_hold_their_connections_stop_nobody_from_joining(home, endpoint, open_ones, tmp_path, what):
    for _ in range(70):
        open_ones.append(connection := raw(home) if what == "no handshake" else tls(home))
        sent = {"half a head": HALF[:20], "half a body": HALF, "a whole request": b"GET /authority HTTP/1.1\r\n\r\n"}
        connection.sendall(sent.get(what, b""))
    for name, invitation in zip(("Ada", "Ben"), invited(home, "Ada", "Ben"), strict=True):
        began = time.monotonic()
        assert joining.join(tmp_path / name, invitation.code).name == name
        assert time.monotonic() - began < 5


def is_closed(connection: socket.socket, within: float) -> bool:
    """Whether the other side ends a connection."""
    connection.settimeout(within)
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_no_more_than_sixteen_of_one_address_are_open(home, endpoint, open_ones):
    for _ in range(40):
        open_ones.append(tls(home))
    closed = [is_closed(connection, 0.2) for connection in open_ones]
    assert closed == [True] * 24 + [False] * 16


@pytest.mark.parametrize("what", [b"", HALF[:20], HALF])
def test_who_does_not_end_its_request_in_time_is_sent_away(home, monkeypatch, open_ones, what):
    monkeypatch.setattr(door.Door.__init__, "__kwdefaults__", {**door.Door.__init__.__kwdefaults__, **SHORT})
    federation = Federation(home.database_path)
    endpoint = JoinEndpoint(home, federation)
    open_ones += [raw(home), tls(home)]
    open_ones[1].sendall(what)
    assert all(is_closed(connection, 5) for connection in open_ones)
    asks_on = http.client.HTTPSConnection("127.0.0.1", home.join_port, context=ssl._create_unverified_context())
    asks_on.auto_open = False
    asks_on.connect()
    began = time.monotonic()

    def ask_for_ten_seconds() -> None:
        while time.monotonic() - began < 10:
            asks_on.request("GET", "/authority")
            asks_on.getresponse().read()
            time.sleep(0.05)

    with pytest.raises((OSError, http.client.HTTPException)):
        ask_for_ten_seconds()
    assert 0.3 < time.monotonic() - began < 5  # not for ever either
    asks_on.close()
    endpoint.close()
    federation.close()


SHORT = {"handshake_seconds": 0.5, "request_seconds": 0.5, "longest_seconds": 1.0}


def test_in_ipv6_one_peer_has_a_network_of_addresses():
    assert origin_of("2001:db8:1:2:3::4") == origin_of("2001:db8:1:2:ffff::9") != origin_of("2001:db8:1:3::4")
    assert origin_of("::ffff:192.0.2.7") == origin_of("192.0.2.7") == "192.0.2.7"
    assert origin_of("192.0.2.7") != origin_of("192.0.2.8")
    assert origin_of("fe80::1%eth0") == origin_of("fe80::2%eth0")
