"""Faults of real processes, one after another: each function brings one about and says whether its effect was seen.

A function returns when the fault itself is over; how the federation comes to itself is watched by `field`.
"""

import contextlib
import os
import signal
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fedlearn.errors import ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import ask as ask_agent
from fedlearn.host.process_tree import descendants
from tests.e2e.proxy import Harm, How
from tests.e2e.real_federation import AGENT, COORDINATOR, MESSAGE, NAMES, NODE, SUPERLINK, is_alive, kill
from tests.soak.field import Field
from tests.soak.letters import made_up
from tests.soak.schedule import STAGES, Fault
from tests.soak.tap import Ask

_LOCKED_SECONDS = 6.0
_STARTS_AGAIN = 90.0
_COMES = 150.0  # until a request of one stage comes to one member
_CALLS = ("pull-messages", "push-messages", "push-object", "confirm-message-received")

# (federation, fault) -> whether its effect was seen
Bring = Callable[[Field, Fault], bool]


def _name(fault: Fault) -> str:
    return NAMES[fault.member]


# -------------------------------------------------------------------- processes


def _part_killed(field: Field, fault: Fault, *, program: str) -> bool:
    """kill -9 of a holder's part: another one takes its place."""
    before = field.of_holder(_name(fault), program)
    for process in before:
        kill(process)
    return bool(before) and field.soon(lambda: set(field.of_holder(_name(fault), program)) - set(before), _STARTS_AGAIN)


def _message_killed(field: Field, fault: Fault) -> bool:
    """kill -9 of the process that carries one message, while it waits for the agent: the request comes again."""
    killed: list[int] = []

    def kill_and_ask(ask: Ask, frame: bytes) -> bytes:
        killed.extend(field.of_holder(_name(fault), MESSAGE))
        for process in killed:
            kill(process)
        return ask(frame)

    return _played_and_asked_again(field, fault, kill_and_ask) and bool(killed)


def _server_part_killed(field: Field, fault: Fault, *, program: str) -> bool:
    """kill -9 of Flower's SuperLink, or of the process that coordinates a run."""
    if not field.soon(lambda: field.of_operator(program), _COMES):
        return False
    before = field.of_operator(program)
    kill(before[0])
    return field.soon(lambda: set(field.of_operator(program)) - set(before), 2 * _STARTS_AGAIN)


def _coordinator_killed(field: Field, fault: Fault) -> bool:
    """kill -9 of `server start`: nothing of it is left, and the next start goes on."""
    service = field.service
    assert service is not None
    left = descendants(service)
    kill(service)
    gone = field.soon(lambda: not any(map(is_alive, [service, *left])), 30)
    field.operator("start --detach")
    return gone and field.service not in (None, service)


def _stopped(field: Field, fault: Fault, *, program: str) -> bool:
    """SIGSTOP for a while: no request is answered meanwhile."""
    name = _name(fault)
    (process,) = field.of_holder(name, program)[:1] or (0,)
    if not process:
        return False
    kill(process, signal.SIGSTOP)
    time.sleep(0.5)
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    time.sleep(10 + fault.number % 15)
    with contextlib.suppress(ProcessLookupError):
        kill(process, signal.SIGCONT)
    return state == "T"


# -------------------------------------------------------------------- connections


def _harmed(field: Field, fault: Fault, *, how: How, calls: tuple[str, ...] = ("",), **more: float) -> bool:
    """The proxy harms calls; it was seen when a call came that was harmed."""
    seconds = float(more.pop("lasts", _COMES))
    kind = Harm(how, fault.among(calls), times=int(more.pop("times", 1)), **more)  # type: ignore[arg-type]
    harm = field.proxies[_name(fault)].harm(kind)
    field.soon(harm.over.is_set, seconds)
    harm.over.set()
    return harm.done > 0


# -------------------------------------------------------------------- disk, ledger, clock


def _disk_full(field: Field, fault: Fault, *, at_operator: bool) -> bool:
    """Not a byte is free for half a minute."""
    place = field.folder / "demo" / ("operator" if at_operator else _name(fault))
    if not field.has_small_disks:
        return False
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    full = os.statvfs(place).f_bavail == 0
    time.sleep(25 + fault.number % 10)
    ballast.unlink()
    return full


def _ledger_locked(field: Field, fault: Fault) -> bool:
    """Another process holds the ledger for a while, when the member is asked for a vector."""
    took: list[float] = []

    def slow(ask: Ask, frame: bytes) -> bytes:
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_hold, field.home(_name(fault)) / "ledger.db")
            time.sleep(0.5)
            reply = ask(frame)
        took.append(time.monotonic() - began)
        return reply

    field.taps[_name(fault)].play(fault.stage, slow)
    return field.soon(lambda: took, _COMES) and took[0] > _LOCKED_SECONDS


def _hold(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None, timeout=20)) as database:
        database.execute("BEGIN IMMEDIATE")
        time.sleep(_LOCKED_SECONDS)
        database.execute("ROLLBACK")


def _clock_moved(field: Field, fault: Fault) -> bool:
    """The holder's clock jumps ahead: Flower turns its calls away, its node ends and is started again."""
    name = _name(fault)
    before = field.of_holder(name, NODE)
    clock = field.folder / f"clock-{name}"
    clock.write_text(str(fault.among((30.0, 3600.0, -3600.0))))
    seen = bool(before) and field.soon(lambda: not any(map(is_alive, before)), 60)
    clock.unlink()
    return seen


# -------------------------------------------------------------------- messages


def _reply_replaced(field: Field, fault: Fault, *, nan: bool) -> bool:
    """The node answers with garbage: nobody believes it, and the request comes again."""
    return _played_and_asked_again(field, fault, lambda ask, frame: _spoiled(ask(frame), nan=nan))


def _spoiled(reply: bytes, *, nan: bool) -> bytes:
    return b"\x00\x00\xc0\x7f" * (len(reply) // 4 + 1) if nan else os.urandom(len(reply))


def _reply_late(field: Field, fault: Fault) -> bool:
    """The answer takes longer than the coordinator waits before it asks again."""

    def late(ask: Ask, frame: bytes) -> bytes:
        reply = ask(frame)
        time.sleep(28)
        return reply

    return _played_and_asked_again(field, fault, late)


def _played_and_asked_again(field: Field, fault: Fault, trick: Callable[[Ask, bytes], bytes]) -> bool:
    tap, asked = field.taps[_name(fault)], list[bytes]()

    def play(ask: Ask, frame: bytes) -> bytes:
        asked.append(frame)
        return trick(ask, frame)

    tap.play(fault.stage, play)
    if not field.soon(lambda: asked, _COMES):
        return False
    again = Frame.from_bytes(asked[0])
    return field.soon(lambda: sum(frame == again for frame in tap.frames) > 1, 90)


def _message_doubled(field: Field, fault: Fault) -> bool:
    """The same request twice: the same answer twice."""
    replies: list[bytes] = []

    def twice(ask: Ask, frame: bytes) -> bytes:
        replies.extend((ask(frame), ask(frame)))
        return replies[0]

    field.taps[_name(fault)].play(fault.stage, twice)
    return field.soon(lambda: len(replies) == 2, _COMES) and replies[0] == replies[1]


def _bundle_lies(field: Field, fault: Fault) -> bool:
    """The coordinator's bundle asks for what it was not told to: it gets refusals."""
    tap, refused = field.taps[_name(fault)], list[bool]()

    def lie(ask: Ask, frame: bytes) -> bytes:
        lies = made_up(fault, Frame.from_bytes(frame), tap.frames)
        refused.extend(ask(each).startswith(REFUSAL) for each in lies)
        return ask(frame)

    tap.play(fault.stage, lie)
    return field.soon(lambda: refused, _COMES) and all(refused)


def _garbage_at_the_agent(field: Field, fault: Fault) -> bool:
    """Bytes that are no frames at the agent's own socket."""
    path = field.home(_name(fault)) / "agent.sock"
    shut = 0
    for garbage in (os.urandom(64), bytes(4) + b"\xff" * 64, b"", bytes(4) + (200).to_bytes(4, "big") + b"{}"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(40)
            connection.connect(str(path))
            answer = b""
            with contextlib.suppress(ConnectionError):  # it closes as soon as it has seen enough
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda c=connection: c.recv(4096), b""))  # type: ignore[misc]
            shut += answer[8:] in (b"", REFUSAL)
    frame = Frame("unmask", "0" * 32, 1, 0, os.urandom(3000)).to_bytes()
    with contextlib.suppress(ProtocolError):
        shut += ask_agent(path, 0, frame, seconds=20).startswith(REFUSAL)
    return shut == 5


def _garbage_at_the_server(field: Field, fault: Fault) -> bool:
    """Bytes that are no calls at the coordinator's port, outside TLS and within it."""
    answers, there = 0, ("127.0.0.1", field.port)
    with socket.create_connection(there, timeout=20) as plain:
        plain.sendall(os.urandom(2000))
        with contextlib.suppress(OSError):
            answers += b"200" not in plain.recv(1000)
    trusted = ssl.create_default_context(cafile=str(field.server / "ca.crt"))
    for path in ("/v1/fleet/pull-messages", "/v1/fleet/push-object", "/v1/control/start-run"):
        body = os.urandom(1000)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        raw = socket.create_connection(there, timeout=20)
        with trusted.wrap_socket(raw, server_hostname="127.0.0.1") as secured:
            secured.sendall(head.encode() + body)
            answers += secured.recv(1000).split(b" ")[1][:1] in (b"4", b"5")
    return answers == 4


_PIPE = ("share", "masked", "consistency", "unmask")
_AWAITED = ("share", "masked")  # of everybody; to unmask, the shares of some are enough
_SERVER_KINDS = frozenset(
    {"SuperLink killed", "coordinator killed", "ServerApp killed", "disk full at the coordinator"}
)

# kind -> how often, at which stages, how
FAULTS: dict[str, tuple[int, tuple[str, ...], Bring]] = {
    "agent killed": (1, STAGES, partial(_part_killed, program=AGENT)),
    "SuperNode killed": (1, STAGES, partial(_part_killed, program=NODE)),
    "message process killed": (1, _AWAITED, _message_killed),
    "SuperLink killed": (1, STAGES, partial(_server_part_killed, program=SUPERLINK)),
    "ServerApp killed": (1, STAGES, partial(_server_part_killed, program=COORDINATOR)),
    "coordinator killed": (1, STAGES, _coordinator_killed),
    "agent stopped": (1, STAGES, partial(_stopped, program=AGENT)),
    "SuperNode stopped": (1, STAGES, partial(_stopped, program=NODE)),
    "connection cut": (1, STAGES, partial(_harmed, how=How.CUT, calls=("push-messages", "push-object"))),
    "connection reset": (1, STAGES, partial(_harmed, how=How.RESET, times=1000, lasts=6)),
    "connection stalled": (1, STAGES, partial(_harmed, how=How.STALLED, times=3, seconds=40)),
    "answer lost": (2, STAGES, partial(_harmed, how=How.LOST, calls=_CALLS)),
    "answer doubled": (1, STAGES, partial(_harmed, how=How.DOUBLED, calls=("push-messages", "push-object"))),
    "HTTP 500": (1, STAGES, partial(_harmed, how=How.STATUS, calls=("pull-messages",))),
    "HTTP 500 for a heartbeat": (1, STAGES, partial(_harmed, how=How.STATUS, calls=("send-node-heartbeat",))),
    "HTTP 429": (1, STAGES, partial(_harmed, how=How.STATUS, calls=("pull-messages",), status=429)),
    "disk full at the coordinator": (1, STAGES, partial(_disk_full, at_operator=True)),
    "disk full at a holder": (1, STAGES, partial(_disk_full, at_operator=False)),
    "ledger locked": (1, ("masked",), _ledger_locked),
    "clock moved": (1, STAGES, _clock_moved),
    "garbage at an agent": (1, STAGES, _garbage_at_the_agent),
    "garbage at the coordinator": (1, STAGES, _garbage_at_the_server),
    "garbage instead of a reply": (1, _AWAITED, partial(_reply_replaced, nan=False)),
    "NaN instead of a reply": (1, ("masked",), partial(_reply_replaced, nan=True)),
    "reply late": (1, _AWAITED, _reply_late),
    "message doubled": (1, _PIPE, _message_doubled),
    "bundle asks with another model": (1, ("masked",), _bundle_lies),
    "bundle asks for another round": (1, _PIPE, _bundle_lies),
}
KINDS = tuple((kind, times, stages) for kind, (times, stages, _) in FAULTS.items())


def concerned(fault: Fault) -> tuple[str, ...]:
    """The members that a fault may take offline."""
    return NAMES if fault.kind in _SERVER_KINDS else (_name(fault),)
