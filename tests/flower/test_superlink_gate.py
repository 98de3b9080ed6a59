"""The gate before Flower's SuperLink: nodes get through; what starts runs answers this user's own processes alone."""

import asyncio
import os
import socket

import pytest

from fedlearn.flower import superlink_gate
from fedlearn.flower.superlink_gate import Gate, owner_of_connection

FLEET, CONTROL, RUNTIME = "/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/acquire-task"


@pytest.fixture
def connection():
    """Both ends of a connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield client, server


def answer(path, *, client=("10.0.0.9", 5000), server=("10.0.0.1", 8443), body=(b"",), length=None, most=100):
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
    asyncio.run(Gate(app, most)(scope, receive, send))
    return next((message["status"] for message in sent if "status" in message), None), b"".join(read)


def test_a_node_from_anywhere_gets_through():
    assert answer(FLEET, body=(b"abc",)) == (200, b"abc")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME, "/docs", "/", "/v1/fleetx", "/health"])
def test_another_machine_gets_to_nothing_else(path):
    assert answer(path, body=(b"abc",)) == (403, b"")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME])
def test_an_own_process_gets_through(path, connection):
    client, server = connection
    ends = {"client": client.getsockname(), "server": server.getsockname()}
    assert answer(path, body=(b"abc",), **ends) == (200, b"abc")


@pytest.mark.parametrize("path", [CONTROL, RUNTIME])
def test_another_user_of_this_machine_does_not(path, connection, monkeypatch):
    client, server = connection
    ends = {"client": client.getsockname(), "server": server.getsockname()}
    monkeypatch.setattr(superlink_gate.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(superlink_gate, "owner_of_connection", lambda *_: 54321)
    assert answer(path, body=(b"abc",), **ends) == (403, b"")


def test_the_owner_of_a_connection_is_known_while_it_is_there(connection):
    client, server = connection
    ends = client.getsockname(), server.getsockname()
    assert owner_of_connection(*ends) == os.geteuid()
    assert owner_of_connection(("127.0.0.1", 1), ends[1]) is None
    assert owner_of_connection(("203.0.113.7", ends[0][1]), ends[1]) is None


def test_the_owner_is_known_over_ipv6():
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        server, _ = listener.accept()
        assert owner_of_connection(client.getsockname()[:2], server.getsockname()[:2]) == os.geteuid()
        server.close()


def test_f18_a_body_that_is_too_long_is_not_handed_on():
    assert answer(FLEET, length=101) == (413, b"")
    assert answer(FLEET, length=100, body=(b"a" * 100,)) == (200, b"a" * 100)
    assert answer(FLEET, body=(b"a" * 60, b"b" * 60)) == (None, b"a" * 60)  # it did not say how long
    stated = [(b"content-length", b"many")]
    assert answer(FLEET, length=stated[0][1].decode()) == (413, b"")
