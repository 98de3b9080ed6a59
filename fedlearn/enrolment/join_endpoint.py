"""Where data holders join and are given the roster: a few paths behind TLS, for as long as somebody is awaited.

GET  /authority   the authority's certificate, PEM: public, and compared with the code before anything is sent
POST /nonce       32 random bytes in hexadecimal, good for one request within a minute
POST /join        an applicant with its proof -> {"address", "name"}
POST /roster      a member's signature -> roster.toml; 409 while it is not closed

Whatever is wrong, the answer is the same 403: a guess learns nothing but that it was one. Who proves wrongly too often
is not listened to for a minute; other noise counts for nothing, and who says nothing holds nobody up
(`deployment.door`).
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response

from fedlearn.bounded import read_json
from fedlearn.crypto.signatures import verify
from fedlearn.enrolment.door import Door, origin_of
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import Applicant, roster_request
from fedlearn.enrolment.server_home import ServerHome
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.wording import one_line

__all__ = ["JoinEndpoint", "join_app", "listen", "read_applicant"]

_REFUSED: Final = b"refused"
_MOST_BYTES: Final = 8192
_NONCE_SECONDS: Final = 60.0
_MOST_USED: Final = 1 << 16
_GUESSES: Final = 5
_GUESS_SECONDS: Final = 60.0
_MOST_GUESSERS: Final = 4096
_START_SECONDS: Final = 10.0


class _Nonces:
    """32 bytes that are good once, for a while. Only those that were used are kept: asking for many costs nobody his.

    moment in microseconds, 8 bytes | 8 random bytes | 16 bytes of HMAC-SHA-256 over them
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._key, self._used = clock, secrets.token_bytes(32), dict[bytes, float]()

    def give(self) -> bytes:
        start = int(self._clock() * 1e6).to_bytes(8, "big") + secrets.token_bytes(8)
        return start + self._seal(start)

    def take(self, nonce: bytes) -> bool:
        start, now = nonce[:16], self._clock()
        moment = int.from_bytes(start[:8], "big") / 1e6
        known = hmac.compare_digest(self._seal(start), nonce[16:])
        if not known or not moment <= now < moment + _NONCE_SECONDS or nonce in self._used:
            return False
        while self._used and (len(self._used) >= _MOST_USED or next(iter(self._used.values())) < now - _NONCE_SECONDS):
            self._used.pop(next(iter(self._used)))
        self._used[nonce] = now
        return True

    def _seal(self, start: bytes) -> bytes:
        return hmac.new(self._key, start, hashlib.sha256).digest()[:16]


class _Guesses:
    """How often each origin proved wrongly within the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._wrong = clock, dict[str, list[float]]()

    def too_many(self, address: str) -> bool:
        since = self._clock() - _GUESS_SECONDS
        self._wrong[address] = [moment for moment in self._wrong.get(address, []) if moment > since]
        return len(self._wrong[address]) >= _GUESSES

    def wrong(self, address: str) -> None:
        while len(self._wrong) > _MOST_GUESSERS:
            self._wrong.pop(next(iter(self._wrong)))
        self._wrong.setdefault(address, []).append(self._clock())


def join_app(home: ServerHome, federation: Federation, *, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The endpoint as an ASGI application."""
    app = FastAPI(openapi_url=None)
    nonces, guesses = _Nonces(clock), _Guesses(clock)
    pin = home.pin
    authority = home.authority_path.read_bytes()

    @app.get("/authority")
    async def give_authority() -> Response:
        return Response(authority, media_type="application/x-pem-file")

    @app.post("/nonce")
    async def give_nonce() -> Response:
        return Response(nonces.give().hex())

    @app.post("/join")
    async def join(request: Request) -> Response:
        def admit(fields: Mapping[str, Any]) -> Response:
            nonce = _bytes(fields, "nonce", 32)
            proof, signature = _bytes(fields, "proof", 32), _bytes(fields, "signature", 64)
            if not nonces.take(nonce):
                raise ValueError("a nonce that was not given, or is used")
            member = federation.admit(read_applicant(fields), proof, signature, pin=pin, nonce=nonce)
            return Response(json.dumps({"address": home.superlink_address, "name": member.name}, allow_nan=False))

        return await _guarded(request, guesses, admit)

    @app.post("/roster")
    async def roster(request: Request) -> Response:
        def give(fields: Mapping[str, Any]) -> Response:
            nonce, client_id = _bytes(fields, "nonce", 32), _bytes(fields, "client_id", 16)
            signature = _bytes(fields, "signature", 64)
            joined = [m.applicant for m in federation.members() if m.applicant and not m.revoked]
            keys = {applicant.client_id: applicant.key for applicant in joined}
            asked = roster_request(pin, client_id, nonce)
            if not nonces.take(nonce):
                raise ValueError("a nonce that was not given, or is used")
            if client_id not in keys or not verify(keys[client_id], signature, purpose="join", message=asked):
                raise RefusedError("nobody of the members asks")
            content = federation.give_roster(client_id)
            return Response(content) if content is not None else Response(b"open", status_code=409)

        return await _guarded(request, guesses, give)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    async def nothing_else(path: str) -> Response:
        del path
        return _refusal()

    return app


async def _guarded(request: Request, guesses: _Guesses, act: Callable[[Mapping[str, Any]], Response]) -> Response:
    """What `act` answers; one and the same refusal for everything that is wrong.

    Only what was proven wrongly counts as a guess: noise guesses nothing, and must not silence who shares its address.
    """
    origin = origin_of(request.client.host if request.client else "")
    if guesses.too_many(origin):
        return _refusal()
    try:
        return act(read_json(await _body(request), what="a request", most=_MOST_BYTES))
    except RefusedError:
        guesses.wrong(origin)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return _refusal()


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError("a request that is too long")
    return body


def _refusal() -> Response:
    return Response(_REFUSED, status_code=403)


def read_applicant(fields: Mapping[str, Any]) -> Applicant:
    """The applicant in a request's fields.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    contact, node_key = fields["contact"], fields["node_key"]
    if not isinstance(contact, str) or not isinstance(node_key, str):
        raise TypeError("expected texts")
    return Applicant(_bytes(fields, "client_id", 16), _bytes(fields, "key", 32), node_key.encode("ascii"), contact)


def _bytes(fields: Mapping[str, Any], name: str, size: int) -> bytes:
    value = bytes.fromhex(fields[name])
    if len(value) != size:
        raise ValueError(name)
    return value


class JoinEndpoint:
    """The application on a port of its own, in a thread, until it is closed."""

    def __init__(self, home: ServerHome, federation: Federation) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken, or may not be used.
        """
        listener = listen(home.host, home.join_port)
        config = uvicorn.Config(
            join_app(home, federation),
            ssl_certfile=home.certificate_path,
            ssl_keyfile=home.key_path,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
            server_header=False,
            ws="none",
            lifespan="off",
        )
        self._server = _Quiet(config)
        door = Door(self._server)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(door.serve(listener)), name="join-endpoint", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def is_alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it; requests under way are answered."""
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)


class _Quiet(uvicorn.Server):
    """Signals are the main thread's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the port is taken, or may not be used.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"a port of {port}; expected 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host} port {port} cannot be listened at: {one_line(error.strerror or 'unknown')}; stop what has it, or "
            "make the server with another port"
        ) from None
    return listener
