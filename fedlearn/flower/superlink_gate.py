"""Flower's SuperLink with a gate before it: the network may use what its nodes need, and nothing else.

python -m fedlearn.flower.superlink_gate OPTIONS OF FLOWER-SUPERLINK

Flower serves three interfaces on one port. The one of the nodes is authenticated; the two others are not: whoever
reached the port could start a run, which is code of their own under the coordinator's user, take out nodes, or take a
run's task away. Here those two answer only at a Unix-domain socket that the coordinator's user alone can reach
(`flower.own_socket`); who comes by the port gets nothing of them, wherever from and whatever it says of itself. A
SuperLink for a simulation has no port at all.

It ends when its standard input closes, and all that it started with it.
"""

import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import uvicorn

from fedlearn.flower.own_socket import SOCKET_VARIABLE, altered, replace_in
from fedlearn.flower.superexec import popen_superexec
from fedlearn.host.process_tree import adopt_orphans, end_with_input

__all__ = ["MOST_BODY_BYTES", "Gate", "main", "serve"]

# One object of a message: a value of at most 5 MB (`flower.records`), or a part of an array, which Flower cuts to 5 MB.
MOST_BODY_BYTES: Final = 8 << 20

_FOR_NODES: Final = "/v1/fleet/"
_NOT_STARTED: Final = 3

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Gate:
    """ASGI middleware: nodes' interface for everybody, bodies of bounded size; all else at `own_socket` alone.

    Guarantees:
        a request to another interface that did not come by `own_socket` is answered 403 before its body is read, and
            without an `own_socket` each is;
        no body longer than `most_body_bytes` is handed on.
    """

    def __init__(self, app: _App, own_socket: Path | None = None, most_body_bytes: int = MOST_BODY_BYTES) -> None:
        self._app, self._most = app, most_body_bytes
        # Where a request came in is said by this end of the connection; where it came from may be said by a header.
        self._own_end = None if own_socket is None else str(own_socket)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Hand on or answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not (scope["path"].startswith(_FOR_NODES) or self._is_own(scope)):
            await _answer(send, 403)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._most:
            await _answer(send, 413)
            return
        await self._app(scope, self._bounded(receive), send)

    def _is_own(self, scope: _Scope) -> bool:
        end = scope.get("server")
        return self._own_end is not None and end is not None and end[0] == self._own_end

    def _bounded(self, receive: _Receive) -> _Receive:
        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # A peer that says less than it sends has gone away, as far as the application sees.
            return message if read <= self._most else {"type": "http.disconnect"}

        return bounded


async def _answer(send: _Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def serve(app: Any, *, host: str, port: int, own_socket: Path, with_port: bool = True, **options: Any) -> None:
    """`uvicorn.run` at a socket of this user's own, and at a port as well; what proxies say of others is not believed.

    Nobody but this user may enter the folder of `own_socket`.
    """
    config = uvicorn.Config(app, host=host, port=port, proxy_headers=False, **options)
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.bind(str(own_socket))
    server = uvicorn.Server(config)
    server.run(sockets=[own, config.bind_socket()] if with_port else [own])
    if not server.started:
        sys.exit(_NOT_STARTED)


def main() -> None:
    """Run Flower's SuperLink behind the gate, with the own socket that the environment names."""
    from flwr.superlink import extensions
    from starlette.middleware import Middleware

    cli: Any = importlib.import_module("flwr.superlink.cli.flower_superlink")
    own_socket, with_port = Path(os.environ[SOCKET_VARIABLE]), "--simulation" not in sys.argv
    adopt_orphans()
    threading.Thread(target=end_with_input, daemon=True).start()
    others = extensions.get_middleware()
    replace_in(extensions, get_middleware=lambda: (Middleware(Gate, own_socket=own_socket), *others))
    own = altered(uvicorn, run=lambda app, **options: serve(app, own_socket=own_socket, with_port=with_port, **options))
    replace_in(cli, subprocess=altered(subprocess, Popen=popen_superexec), uvicorn=own)
    cli.flower_superlink()


if __name__ == "__main__":
    main()
