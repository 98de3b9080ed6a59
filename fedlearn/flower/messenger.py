"""Stages as Flower messages. Flower delivers at most once and may say "sent" of what was lost: it is not believed.

* Every reply is waited for by itself, in a thread that the stage's deadline abandons: one half-uploaded reply would
  hold up a pull of several for minutes.
* A request without an answer is sent again, the same bytes in a new message: the agent answers it from memory.
* A reply counts when whoever waits for it says so. What was forged, or garbled, changes nothing.
"""

import logging
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attempts import Receive
from fedlearn.errors import ConfigError, ProtocolError
from fedlearn.flower.drop_outs import DropOuts, Fault
from fedlearn.flower.in_process_grid import InProcessGrid
from fedlearn.flower.records import MESSAGE_TYPES, MOST_MESSAGE_BYTES, pack, unpack
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.policy.roster import Roster
from fedlearn.run.checkpoint import Progress
from fedlearn.secagg.messages import is_identified
from fedlearn.stages import ATTEST, IDENTIFY, STAGES_OF_ATTEMPT

__all__ = ["Messenger", "Pace"]

_log = logging.getLogger(__name__)

# Position of each stage in `stage_seconds`; who a node is, is asked before the first round, what it booked at the end.
_STAGE_SECONDS: Final = {IDENTIFY: 0, ATTEST: 4, **{name: stage for stage, name in enumerate(STAGES_OF_ATTEMPT)}}
_CHALLENGE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is looked for replies and how soon asked again, in seconds.

    A poll costs the SuperLink 10 ms, so `polls_a_second` bounds them. The nodes of a run that begins may come up one by
    one: their first replies have `patience` more.
    """

    poll: float = 0.2
    polls_a_second: float = 20.0
    again: float = 20.0  # at least; else three times the median of those who answered
    patience: float = 300.0


class _Letter(NamedTuple):
    """One member's request: where to, and the same bytes however often it is sent."""

    node: int
    frame: bytes


class Messenger:
    """The members of one run, reached over a grid.

    Guarantees:
        `ask` returns at the latest when the stage's time is up, whatever the grid does;
        every copy of a request has the same bytes;
        nothing longer than `MOST_MESSAGE_BYTES` goes over a network, or is taken from it;
        with a roster, a node is the member whose key signed for it, whatever Flower says of it.
    """

    def __init__(self, grid: Grid, config: RunConfig, roster: Roster | None, pace: Pace | None = None) -> None:
        self._grid, self._config, self._roster, self._pace = grid, config, roster, pace or Pace()
        self._node_of: dict[int, int] = {}
        self._asked: set[int] = set()
        self._faults = DropOuts(config.runtime.dropout, config.secure_aggregation.planned_cohort)

    def identify(self, population_size: int, progress: Progress) -> None:
        """Learn which node is which member, of the nodes that are there within the time of a stage."""
        seconds = self._seconds(IDENTIFY)
        deadline = time.monotonic() + seconds
        nodes = list(self._grid.get_node_ids())
        while len(nodes) < population_size and time.monotonic() < deadline:
            time.sleep(self._pace.poll)  # nodes of another process come up one by one
            nodes = list(self._grid.get_node_ids())
        self._greet(nodes, progress, patience=self._pace.patience)

    def ask(self, stage: str, progress: Progress, bodies: Mapping[int, bytes], receive: Receive) -> None:
        """Implements `rounds.Ask`; a member whose node is not known, or that is late, is left out."""
        if stage == STAGES_OF_ATTEMPT[0]:
            self._greet_newcomers(progress)
        fault = self._faults.at(stage, bodies) if stage in STAGES_OF_ATTEMPT else Fault()
        place = (progress.session, progress.round + 1, progress.attempt)
        letters = {
            member: _Letter(self._node_of[member], Frame(stage, *place, body).to_bytes())
            for member, body in bodies.items()
            if member in self._node_of and member not in fault.unasked
        }

        if not letters and not isinstance(self._grid, InProcessGrid):
            time.sleep(self._pace.again)  # whoever comes meanwhile is known in the next attempt

        def unless_lost(member: int, reply: bytes) -> bool:
            return member in fault.lost or receive(member, reply)

        self._exchange(stage, letters, unless_lost)

    def _greet_newcomers(self, progress: Progress) -> None:
        """Ask nodes that came later who they are, while the round goes on: they can take part in the next one."""
        if isinstance(self._grid, InProcessGrid):
            return

        def greet() -> None:
            try:
                nodes = [node for node in self._grid.get_node_ids() if node not in self._asked]
                self._greet(nodes, progress, patience=0)
            except Exception as error:
                _log.warning("newcomers are asked again in the next round: %s", error)

        threading.Thread(target=greet, name="newcomers", daemon=True).start()

    def _greet(self, nodes: list[int], progress: Progress, *, patience: float) -> None:
        challenges = {node: os.urandom(_CHALLENGE_BYTES) for node in nodes}
        self._asked |= set(nodes)
        letters = {
            node: _Letter(node, Frame(IDENTIFY, progress.session, 0, 0, challenge).to_bytes())
            for node, challenge in challenges.items()
        }

        def receive(node: int, reply: bytes) -> bool:
            member = self._member(progress.session, challenges[node], reply)
            if member is not None:
                self._node_of[member] = node
            return member is not None

        self._exchange(IDENTIFY, letters, receive, patience=patience)
        self._asked -= set(nodes) - set(self._node_of.values())  # whoever did not say is asked again

    def _member(self, session: str, challenge: bytes, reply: bytes) -> int | None:
        """Who signed this reply; without a roster, in a simulation, who it says it is."""
        if self._roster is None:
            return int.from_bytes(reply, "big") if len(reply) == 16 else None
        for member, entry in enumerate(self._roster.members):
            if reply.startswith(entry.client_id):
                signed = is_identified(entry.key, entry.client_id, bytes.fromhex(session), challenge, reply)
                return member if signed else None
        return None

    def _exchange(self, stage: str, letters: Mapping[int, _Letter], receive: Receive, *, patience: float = 0.0) -> None:
        _Exchange(self._grid, stage, letters, self._pace).run(receive, self._seconds(stage), patience)

    def _seconds(self, stage: str) -> int:
        return self._config.secure_aggregation.stage_seconds[_STAGE_SECONDS[stage]]


@dataclass(slots=True)
class _Exchange:
    """One stage's letters, and what comes back. Threads that the deadline leaves behind only reach this object."""

    grid: Grid
    stage: str
    letters: Mapping[int, _Letter]
    pace: Pace
    _arrived: "queue.SimpleQueue[tuple[int, Message]]" = field(default_factory=queue.SimpleQueue)
    _over: threading.Event = field(default_factory=threading.Event)
    _sent: dict[int, float] = field(default_factory=dict)
    _took: list[float] = field(default_factory=list)

    def run(self, receive: Receive, seconds: float, patience: float) -> None:
        """Until all have answered, or `seconds` after the first reply, or `seconds` and `patience` after the start.

        Raises:
            ConfigError: a message is too long for a network.
        """
        began = time.monotonic()
        deadline = began + seconds + patience
        waiting = set(self.letters)
        if isinstance(self.grid, InProcessGrid):  # it has run the app when a push returns: there is nothing to wait for
            for member, message in self._in_process():
                self._hand_over(member, message, receive)
            return
        self._check_sizes()
        try:
            self._send(sorted(waiting), until=deadline)
            while waiting and time.monotonic() < deadline:
                try:
                    pause = min(deadline, self._next_copy(waiting, patience)) - time.monotonic()
                    member, message = self._arrived.get(timeout=max(0.0, pause))
                except queue.Empty:
                    self._send(self._overdue(waiting, patience), until=deadline)
                    continue
                deadline = min(deadline, time.monotonic() + seconds)
                if member in waiting and self._hand_over(member, message, receive):
                    waiting.discard(member)
                    self._took.append(time.monotonic() - began)
        finally:
            self._over.set()

    def _check_sizes(self) -> None:
        longest = max((len(letter.frame) for letter in self.letters.values()), default=0)
        if longest > MOST_MESSAGE_BYTES:
            raise ConfigError(
                f"a message of stage {self.stage} would have {longest / 1e6:.0f} MB; expected at most "
                f"{MOST_MESSAGE_BYTES / 1e6:.0f} MB: take a smaller model, or the engine in-process"
            )

    def _in_process(self) -> list[tuple[int, Message]]:
        members = list(self.letters)
        ids = list(self.grid.push_messages(self._messages(members, ttl=None)))
        member_of = dict(zip(ids, members, strict=True))
        return [(member_of[m.metadata.reply_to_message_id], m) for m in self.grid.pull_messages(ids)]

    def _hand_over(self, member: int, message: Message, receive: Receive) -> bool:
        """Whether this member is not waited for any more."""
        if message.has_error():
            _log.info("stage %s: Flower gives error %d for member %d", self.stage, message.error.code, member)
            return message.error.code == ErrorCode.NODE_UNAVAILABLE
        try:
            reply = unpack(message.content)
        except ProtocolError as error:
            _log.info("stage %s: %s from member %d", self.stage, error, member)
            return False
        too_long = len(reply) > MOST_MESSAGE_BYTES and not isinstance(self.grid, InProcessGrid)
        return reply != REFUSAL and not too_long and receive(member, reply)

    def _send(self, members: list[int], *, until: float) -> None:
        """Push letters in a thread of their own, which then looks for each reply in another."""
        now = time.monotonic()
        if not members or until <= now:
            return
        self._sent |= dict.fromkeys(members, now)

        def push() -> None:
            try:
                ids = list(self.grid.push_messages(self._messages(members, ttl=until - now)))
            except Exception as error:  # the SuperLink is away: the next copy may get through
                _log.warning("stage %s was not sent: %s", self.stage, error)
                return
            for member, message_id in zip(members, ids, strict=True):
                if message_id:
                    self._in_thread(lambda m=member, i=message_id: self._look_for(m, i))  # type: ignore[misc]

        self._in_thread(push)

    def _look_for(self, member: int, message_id: str) -> None:
        pause = max(self.pace.poll, len(self.letters) / self.pace.polls_a_second)
        while not self._over.is_set():
            try:
                found = list(self.grid.pull_messages([message_id]))
            except Exception as error:
                _log.warning("stage %s: looking for a reply failed: %s", self.stage, error)
                found = []
            if found:
                self._arrived.put((member, found[0]))
                return
            self._over.wait(pause)

    def _in_thread(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=f"stage-{self.stage}", daemon=True).start()

    def _messages(self, members: list[int], *, ttl: float | None) -> list[Message]:
        contents = {frame: pack(frame) for frame in {self.letters[member].frame for member in members}}
        return [
            self.grid.create_message(
                contents[self.letters[member].frame],
                MESSAGE_TYPES[self.stage],
                self.letters[member].node,
                group_id=self.stage,
                ttl=ttl,
            )
            for member in members
        ]

    def _again_after(self, patience: float) -> float:
        """Seconds until a letter without an answer is sent once more."""
        if not self._took:
            return patience + 3 * self.pace.again
        return max(self.pace.again, 3 * statistics.median(self._took))

    def _next_copy(self, waiting: set[int], patience: float) -> float:
        return min(self._sent[member] for member in waiting) + self._again_after(patience)

    def _overdue(self, waiting: set[int], patience: float) -> list[int]:
        latest = time.monotonic() - self._again_after(patience)
        return sorted(member for member in waiting if self._sent[member] <= latest)
