"""Flower's SuperLink with a gate before it: the network may use what its nodes need, and nothing else.

python -m fedlearn.flower.superlink_gate OPTIONS OF FLOWER-SUPERLINK

Flower serves three interfaces on one port. The one of the nodes is authenticated; the two others are not: whoever
reached the port could start a run, which is code of their own under the coordinator's user, take out nodes, or take a
run's task away. Here those two answer only to processes of the coordinator's own user on this machine.

It ends when its standard input closes, and all that it started with it.
"""

import ipaddress
import os
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from fedlearn.flower.process_tree import adopt_orphans, end_with_input

__all__ = ["MOST_BODY_BYTES", "Gate", "main", "owner_of_connection"]

# One object of a message: a value of at most 5 MB (`flower.records`), or a part of an array, which Flower cuts to 5 MB.
MOST_BODY_BYTES: Final = 8 << 20

_FOR_NODES: Final = "/v1/fleet/"
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Gate:
    """ASGI middleware: nodes' interface for everybody, bodies of bounded size; all else for this user alone.

    Guarantees:
        a request to another interface from another machine or another user is answered 403 before its body is read;
        no body longer than `most_body_bytes` is handed on.
    """

    def __init__(self, app: _App, most_body_bytes: int = MOST_BODY_BYTES) -> None:
        self._app, self._most = app, most_body_bytes

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Hand on or answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not (scope["path"].startswith(_FOR_NODES) or _is_own(scope)):
            await _answer(send, 403)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._most:
            await _answer(send, 413)
            return
        await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: _Receive) -> _Receive:
        read = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # A peer that says less than it sends has gone away, as far as the application sees.
            return message if read <= self._most else {"type": "http.disconnect"}

        return bounded


def owner_of_connection(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The user whose process on this machine holds the other end of a connection; None where there is none.

    `peer` and `own` are addresses and ports of the two ends, as this end sees them.
    """
    ends = [_as_kernel_writes(*peer), _as_kernel_writes(*own)]
    for table in _TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1:3] == ends:
                return int(fields[7])
    return None


def _as_kernel_writes(address: str, port: int) -> str:
    """An end of a connection as /proc/net/tcp has it: 32-bit words in this machine's order, all in hexadecimal."""
    packed = ipaddress.ip_address(address).packed
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _is_own(scope: _Scope) -> bool:
    client, server = scope.get("client"), scope.get("server")
    if not client or not server:
        return False
    return owner_of_connection(tuple(client), tuple(server)) in (os.geteuid(), 0)


async def _answer(send: _Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Run Flower's SuperLink behind the gate."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    adopt_orphans()
    threading.Thread(target=end_with_input, daemon=True).start()
    others = extensions.get_middleware()
    extensions.get_middleware = lambda: (Middleware(Gate), *others)
    flower_superlink()


if __name__ == "__main__":
    main()
