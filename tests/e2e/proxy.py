"""A proxy between one node and its coordinator that knows HTTP: it does one harm at a time, and says how often it did.

It shows the coordinator's own certificate, which only a test can: in earnest TLS ends at the SuperLink.
"""

import asyncio
import contextlib
import enum
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_NO_LINGER = struct.pack("ii", 1, 0)
_PASSED_ON = ("content-type", "content-encoding", "date")


class How(enum.Enum):
    """What becomes of a call."""

    CUT = "the connection ends in the middle of the request"
    RESET = "the connection is reset before the call is served"
    LOST = "the call is served and its answer lost"
    STALLED = "the call is served and its answer comes late"
    DOUBLED = "the call is served twice"
    STATUS = "the call is not served, and answered with a status"


@dataclass
class Harm:
    """What to do with one in `every` call whose path ends with `path`, `times` times; `done` counts them."""

    how: How
    path: str = ""
    times: int = 1
    seconds: float = 0.0
    status: int = 500
    every: int = 1
    done: int = 0
    came: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def takes(self, path: str) -> bool:
        """Whether this call is harmed; it counts then."""
        if self.over.is_set() or not path.endswith(self.path):
            return False
        self.came += 1
        if self.came % self.every:
            return False
        self.done += 1
        if self.done >= self.times:
            self.over.set()
        return True


class _Gone(Exception):
    """The node's connection is to be reset."""


class Proxy:
    """Listens at a port of the loopback for one node; `harm` is what it does now."""

    def __init__(self, upstream: str, server: Path) -> None:
        """`upstream`: the SuperLink's "host:port"; `server`: the coordinator's folder, for its certificate."""
        self._upstream, self._authority = f"https://{upstream}", server / "ca.crt"
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(server / "server.crt", server / "server.key")
        self._harm: Harm | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        self.port = self._soon(self._listen())

    @property
    def address(self) -> str:
        """Where the node finds its coordinator."""
        return f"127.0.0.1:{self.port}"

    def harm(self, harm: Harm) -> Harm:
        """From now on; ends the harm before."""
        if self._harm is not None:
            self._harm.over.set()
        self._harm = harm
        return harm

    def close(self) -> None:
        """Listen no more."""
        self._soon(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _soon(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> int:
        trusted = ssl.create_default_context(cafile=str(self._authority))
        self._client = httpx.AsyncClient(verify=trusted, timeout=120, trust_env=False)
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return int(self._listener.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        self._listener.close()
        await self._client.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._call(reader, writer)
        except (_Gone, httpx.HTTPError):
            _reset(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the node went away
        finally:
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        size = int({name.lower(): value for name, value in headers.items()}.get("content-length", 0))
        harm = self._harm if self._harm is not None and self._harm.takes(path) else None
        if harm is not None and harm.how is How.CUT:
            await reader.readexactly(size // 2)
            raise _Gone
        body = await reader.readexactly(size)
        if harm is not None and harm.how is How.RESET:
            raise _Gone
        status, kept, answer = await self._answer(harm, method, path, headers, body)
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in kept.items())]
        writer.write("\r\n".join([*lines, f"content-length: {len(answer)}", "", ""]).encode("latin-1") + answer)
        await writer.drain()

    async def _answer(
        self, harm: Harm | None, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if harm is not None and harm.how is How.STATUS:
            return harm.status, {}, b""
        request = self._client.build_request(method, self._upstream + path, headers=headers, content=body)
        if harm is not None and harm.how is How.DOUBLED:
            await self._client.send(request)
        served = await self._client.send(request, stream=True)
        answer = b"".join([part async for part in served.aiter_raw()])
        await served.aclose()
        if harm is not None and harm.how is How.LOST:
            raise _Gone
        if harm is not None and harm.how is How.STALLED:
            await asyncio.sleep(harm.seconds)
        return served.status_code, {name: served.headers[name] for name in _PASSED_ON if name in served.headers}, answer


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other end is told of no orderly end."""
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
