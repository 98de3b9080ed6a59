"""The agents of a simulation, or a holder's one, behind a Unix-domain socket: one connection, one request, one reply.

request: u32 number of the client | frame (`holder.frames`)        reply: u64 length | body

* The peer's user is asked of the kernel before a byte is read, where the kernel tells it.
* A length is checked before anything is allocated, and memory grows only with the bytes that came.
* What cannot be read closes its own connection. Nothing a peer sends ends the server.

Whoever holds the socket is treated as the server: nothing more is assumed of it.
"""

import array
import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fedlearn.errors import ConfigError, ProtocolError
from fedlearn.holder.frames import MAX_FRAME_BYTES, REFUSAL, Frame

__all__ = ["AgentServer", "Answer", "ask", "check_socket_path", "is_answering", "other_user", "same_user"]

# (number of the client, stage, frame) -> reply
Answer = Callable[[int, str, bytes], bytes]

_MAX_HEADER: Final = 512
_MAX_CONNECTIONS: Final = 64
_CHUNK: Final = 1 << 20
# A peer that stops in the middle of a request gives its place to another.
_READ_SECONDS: Final = 30.0
_LONGEST_PATH: Final = 107  # bytes that a socket's path may have, on Linux
# How long a peer that is not read may take to go away, or to show that it wants something.
_LOOK_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


def same_user(uid: int) -> bool:
    """Whether a peer runs under this process's own user."""
    return uid == os.geteuid()


def other_user(uid: int) -> bool:
    """Whether a peer runs under another user: code of one's own user could read the records without asking."""
    return not same_user(uid)


class AgentServer:
    """Answers requests for the clients 0..`clients`-1 on a socket at `path` until it is closed; a context manager.

    The socket is made with mode 0600, or for a `group` with 0660. At most `places` connections are read side by side,
    and whoever is silent for `read_seconds` loses its own; `at_once` requests are answered at a time.

    Guarantees:
        a peer whose user `allowed` does not accept is never read;
        a request that is not exactly one frame for a known client gets the constant refusal;
        a frame longer than `max_frame_bytes` is refused before memory for it is taken;
        no request, whatever its bytes, ends the server.
    """

    def __init__(
        self,
        path: Path,
        answer: Answer,
        *,
        clients: int,
        allowed: Callable[[int], bool] = same_user,
        group: int | None = None,
        at_once: int = 1,
        places: int = _MAX_CONNECTIONS,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        read_seconds: float = _READ_SECONDS,
    ) -> None:
        self._answer, self._clients, self._allowed = answer, clients, allowed
        self._max_frame_bytes, self._read_seconds = max_frame_bytes, read_seconds
        self._at_once, self._turns = at_once, threading.BoundedSemaphore(at_once)
        self._places = threading.BoundedSemaphore(places)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before `listen`
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        self._listener.listen(places)
        self._accepting = threading.Thread(target=self._accept, name="agent-socket", daemon=True)
        self._accepting.start()

    @property
    def is_accepting(self) -> bool:
        """Whether connections are still taken."""
        return self._accepting.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Accept no further connection, and let the requests that are being answered end."""
        with suppress(OSError):  # macOS refuses to shut a listening socket down; closing it is enough there
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for _ in range(self._at_once):
            self._turns.acquire()

    def _accept(self) -> None:
        while True:
            self._places.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), name="agent-request", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(self._read_seconds)
                reply = self._reply_to(connection)
                connection.sendall(len(reply).to_bytes(8, "big") + reply)
        except OSError as error:
            _log.info("a peer went away: %s", error)
        finally:
            self._places.release()

    def _reply_to(self, connection: socket.socket) -> bytes:
        uid = _peer_uid(connection)
        if uid is not None and not self._allowed(uid):
            if _wants_something(connection):
                _log.warning("a peer of user %d is refused", uid)
            return REFUSAL
        try:
            client, data = _read_request(connection, self._max_frame_bytes)
            stage = Frame.from_bytes(data).stage
            if client >= self._clients:
                raise ProtocolError(f"client {client} of {self._clients}")
        except ProtocolError as error:
            _log.info("a request is refused: %s", error)
            return REFUSAL
        with self._turns:
            return self._answer(client, stage, data)


def check_socket_path(path: Path) -> None:
    """See that a socket can have this path.

    Raises:
        ConfigError: it is too long; the kernel would cut it off or refuse it.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(
            f"agent.socket is {path}, longer than the {_LONGEST_PATH} bytes of a socket's path; take a home nearer to "
            "the root, or write a short absolute path into agent.socket"
        )


def ask(path: Path, client: int, frame: bytes, *, seconds: float | None = None) -> bytes:
    """The reply of one client's agent to one frame; once connected, waits at most `seconds` for each part of it.

    Raises:
        ProtocolError: nobody answers, or the answer is not one whole reply.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            # Waiting for a place comes first: with a timeout, Linux would fail at once where the queue is full.
            connection.connect(str(path))
            connection.settimeout(seconds)
            connection.sendall(client.to_bytes(4, "big") + frame)
            size = int.from_bytes(_read_exactly(connection, 8), "big")
            if size > MAX_FRAME_BYTES:
                raise ProtocolError(f"a reply of {size} bytes; expected at most {MAX_FRAME_BYTES}")
            return _read_exactly(connection, size)
    except OSError as error:
        raise ProtocolError(f"the agent at {path} does not answer: {error}") from None


def is_answering(path: Path) -> bool:
    """Whether a server listens at `path`; one whose places are all taken does, and is not waited for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        return connection.connect_ex(str(path)) in (0, errno.EAGAIN)


def _wants_something(connection: socket.socket) -> bool:
    """Whether a peer sent any byte, or stays; nothing is read. Who only looks whether somebody listens does neither."""
    import fcntl
    import termios

    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(_LOOK_SECONDS * 1000):
        return True
    waiting = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, waiting)
    return waiting[0] > 0


def _read_request(connection: socket.socket, max_frame_bytes: int) -> tuple[int, bytes]:
    """Number of the client and the bytes of its frame, lengths checked and nothing else.

    Raises:
        ProtocolError: a length out of range, or an end before its time.
    """
    client = int.from_bytes(_read_exactly(connection, 4), "big")
    start = _read_exactly(connection, 4)
    header_size = int.from_bytes(start, "big")
    if not 0 < header_size <= _MAX_HEADER:
        raise ProtocolError(f"a header of {header_size} bytes; expected 1 to {_MAX_HEADER}")
    start += _read_exactly(connection, header_size + 8)
    body_size = int.from_bytes(start[-8:], "big")
    if len(start) + body_size > max_frame_bytes:
        raise ProtocolError(f"a frame of {len(start) + body_size} bytes; expected at most {max_frame_bytes}")
    return client, start + _read_exactly(connection, body_size)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    missing = size
    while missing:
        part = connection.recv(min(missing, _CHUNK))
        if not part:
            raise ProtocolError(f"the connection ended {missing} bytes too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _peer_uid(connection: socket.socket) -> int | None:
    """The user of the process at the other end; None where the platform does not tell.

    There the socket's mode 0600 in a folder of mode 0700 alone keeps others out.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return int(uid)
