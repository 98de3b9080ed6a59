"""The connections of a small endpoint that the whole network may reach: few, short, and never held by who says nothing.

A place is taken before a byte is read, also for the TLS handshake. Where all are taken, of the peer's own address or
altogether, the newest gets the place of the one that has waited longest for its peer: an honest request is answered
within a moment of its connection, and a hundred silent ones only push out each other.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Door", "origin_of"]

_PLACES: Final = 64
_PLACES_OF_ONE: Final = 16
_HANDSHAKE_SECONDS: Final = 10.0
_REQUEST_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.1
_OF_ONE_SITE: Final = 64  # bits of an address of IPv6 that one peer cannot choose


def origin_of(address: str) -> str:
    """Whom an address stands for: itself, or of IPv6 its network of 64 bits, in which one peer has any address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    return str(known.ipv4_mapped or ipaddress.IPv6Network((int(known), _OF_ONE_SITE), strict=False))


@dataclass(eq=False, slots=True)
class _Guest:
    """One connection; without a `protocol` its handshake is on."""

    connection: socket.socket
    origin: str
    protocol: "_Protocol | None" = None

    @property
    def is_waited_for(self) -> bool:
        """Whether it is the peer's turn: nothing that came from it is being worked on."""
        cycle = None if self.protocol is None else self.protocol.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def send_away(self) -> None:
        """End the connection, whatever it is at."""
        if self.protocol is not None:
            self.protocol.transport.abort()
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class _Protocol(H11Protocol):
    """uvicorn's, which tells when a connection is gone."""

    def __init__(self, left: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._left = left

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left()


class Door:
    """Accepts for a uvicorn server over TLS that listens nowhere by itself.

    Guarantees:
        at most `places` connections are open, and at most `places_of_one` of one origin;
        who does not end its TLS handshake within `handshake_seconds`, or then a request within `request_seconds`, is
            sent away, and everybody is after `longest_seconds`.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        *,
        places: int = _PLACES,
        places_of_one: int = _PLACES_OF_ONE,
        handshake_seconds: float = _HANDSHAKE_SECONDS,
        request_seconds: float = _REQUEST_SECONDS,
        longest_seconds: float = _LONGEST_SECONDS,
    ) -> None:
        self._server, self._places, self._places_of_one = server, places, places_of_one
        self._handshake_seconds, self._request_seconds = handshake_seconds, request_seconds
        self._longest_seconds = longest_seconds
        self._guests: dict[_Guest, None] = {}  # the oldest first

    async def serve(self, listener: socket.socket) -> None:
        """Accept until the server has ended."""
        if not self._server.config.loaded:
            self._server.config.load()
        listener.setblocking(False)
        listener.listen(self._places)
        accepting = asyncio.create_task(self._accept(listener))
        try:
            await self._server.serve(sockets=[])
        finally:
            accepting.cancel()
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop, welcomed = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError:  # gone before it was accepted, or the machine has no more files for now
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if not self._make_room(origin_of(address[0])):
                connection.close()
                continue
            self._guests[guest := _Guest(connection, origin_of(address[0]))] = None
            task = asyncio.create_task(self._welcome(guest))
            welcomed.add(task)
            task.add_done_callback(welcomed.discard)

    def _make_room(self, origin: str) -> bool:
        """Whether there is a place for one more; who waits for nothing but its peer may lose its own."""
        of_one = [guest for guest in self._guests if guest.origin == origin]
        for among, most in ((of_one, self._places_of_one), (list(self._guests), self._places)):
            if len(among) < most:
                continue
            oldest = next((guest for guest in among if guest.is_waited_for), None)
            if oldest is None:
                return False
            self._leave(oldest)
            oldest.send_away()
        return True

    async def _welcome(self, guest: _Guest) -> None:
        """The handshake; then the connection is uvicorn's, for a while."""
        config, loop = self._server.config, asyncio.get_running_loop()

        def protocol() -> _Protocol:
            state = self._server.server_state
            return _Protocol(lambda: self._leave(guest), config=config, server_state=state, app_state={})

        try:
            _, made = await loop.connect_accepted_socket(
                protocol, guest.connection, ssl=config.ssl, ssl_handshake_timeout=self._handshake_seconds
            )
        except (OSError, ssl.SSLError, TimeoutError):
            self._leave(guest)
            return
        guest.protocol = made
        if guest not in self._guests:  # sent away meanwhile
            guest.send_away()
        loop.call_later(self._request_seconds, lambda: guest.send_away() if guest.is_waited_for else None)
        loop.call_later(self._longest_seconds, guest.send_away)

    def _leave(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)
