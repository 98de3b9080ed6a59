"""Flower's runtime as it was measured to fail: messages and replies get lost, late, garbled, forged, stuck."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlearn.flower.in_process_grid import make_message


@dataclass
class Fate:
    """What becomes of one message. `reply` may change the reply's content; None loses it."""

    delivered: bool = True
    reply: Callable[[Message], Message | None] = lambda message: message
    delay: float = 0.0
    stuck: bool = False  # the reply's head arrived and its objects never do: a pull of it blocks


# (stage, node, how many copies of this stage's request went to this node before) -> what becomes of the next
FateOf = Callable[[str, int, int], Fate]


@dataclass
class Sent:
    stage: str
    node: int
    message: Message


@dataclass
class LossyGrid(Grid):
    """Nodes 1..n that run `app` with partition k-1, each message in a thread, over a network of any kind."""

    app: ClientApp
    population_size: int
    fate_of: FateOf = lambda stage, node, copies: Fate()
    sent: list[Sent] = field(default_factory=list)
    online: set[int] = field(default_factory=set)
    pulled_together: int = 0

    def __post_init__(self) -> None:
        self._replies: dict[str, Message] = {}
        self._stuck: set[str] = set()
        self._ended = threading.Event()
        self._run = Run.create_empty(0)
        self._pushing = threading.Lock()
        self.online = self.online or set(range(1, self.population_size + 1))

    def close(self) -> None:
        self._ended.set()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return make_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Sequence[int]:
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            stage, node = message.metadata.message_type.partition(".")[2], message.metadata.dst_node_id
            with self._pushing:
                copies = sum(
                    (s.stage, s.node, body_of(s.message)) == (stage, node, body_of(message)) for s in self.sent
                )
                self.sent.append(Sent(stage, node, message))
            fate = self.fate_of(stage, node, copies)
            ids.append(message.metadata.message_id)
            if fate.stuck:
                self._stuck.add(message.metadata.message_id)
            if fate.delivered and node in self.online:
                threading.Thread(target=self._deliver, args=(message, fate), daemon=True).start()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = list(message_ids)
        self.pulled_together = max(self.pulled_together, len(asked))
        if any(message_id in self._stuck for message_id in asked):
            self._ended.wait(60)
            return []
        return [self._replies.pop(known) for known in asked if known in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise AssertionError(f"nobody waits {timeout} s for all of {messages} at once")

    def _deliver(self, message: Message, fate: Fate) -> None:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=0, node_id=node, node_config={"partition-id": node - 1}, state=RecordDict(), run_config={}
        )
        try:
            reply: Message | None = self.app(message, context)
        except Exception as error:  # as Flower does: type and text go to the server
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        assert reply is not None
        reply = fate.reply(reply)
        time.sleep(fate.delay)
        if reply is not None:
            self._replies[message.metadata.message_id] = reply


def body_of(message: Message) -> bytes:
    """The frame that a message carries."""
    return message.content["fedlearn"]["frame"]
