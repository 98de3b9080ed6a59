"""A Flower grid whose nodes live in this process: the same apps, no Ray, no sockets."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast
from uuid import uuid4

from flwr.app import DEFAULT_TTL, Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.coordinator.attempts import CohortSums
from fedlearn.run.checkpoint import Progress

__all__ = ["InProcessGrid", "make_message"]

_APP_FAILED = 0


def make_message(content: RecordDict, message_type: str, node: int, group: str, ttl: float | None = None) -> Message:
    """An instruction message. `Message(content, dst, type)` itself raises outside of a Flower task."""
    metadata = Metadata(
        run_id=0,
        message_id=uuid4().hex,
        src_node_id=0,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=ttl or DEFAULT_TTL,
        message_type=message_type,
    )
    # Flower's own way to pass metadata is not in its overloads.
    return cast(Message, Message(content=content, metadata=metadata))  # type: ignore[call-overload]


Prepare = Callable[[str, Mapping[int, Message]], None]
SumsAt = Callable[[Progress], CohortSums]


class InProcessGrid(Grid):
    """Nodes 1..n; node k runs `app` with partition k-1, and keeps the state that the app left there.

    `prepare` may look at all messages of a push (type, partition -> message) before the app sees them one by one: a
    pool of agents computes a cohort at once there and answers each message from memory. `sums_at` sums a whole cohort
    without messages, where nobody is to see them: whoever drives the rounds takes it instead of asking node by node.
    """

    def __init__(
        self, app: ClientApp, population_size: int, prepare: Prepare | None = None, sums_at: SumsAt | None = None
    ) -> None:
        self._app, self._nodes, self._prepare = app, range(1, population_size + 1), prepare
        self.sums_at = sums_at
        self._run = Run.create_empty(0)
        # Flower's strategies make messages of their own, which take from here who sends them.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 0, 0
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node."""
        return make_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Sequence[int]:
        """All nodes; a range, so that a million cost nothing."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the app on each message at once; a failing app becomes an error reply, as it does on Flower's engines."""
        pushed = [_named(message) for message in messages]
        if self._prepare:
            for message_type in dict.fromkeys(message.metadata.message_type for message in pushed):
                group = {m.metadata.dst_node_id - 1: m for m in pushed if m.metadata.message_type == message_type}
                self._prepare(message_type, group)
        for message in pushed:
            self._replies[message.metadata.message_id] = self._answer(message)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages, each given once."""
        return [self._replies.pop(known) for known in list(message_ids) if known in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull; every reply is there at once, so `timeout` has nothing to bound."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = self._contexts.get(node) or self._new_context(node)
        try:
            return self._app(message, context)
        except Exception:  # whatever an app raises is a failed client, never a failed run
            return Message(Error(_APP_FAILED, "the ClientApp failed"), reply_to=message)
        finally:
            if context.state:  # of a million nodes, only those cost memory that have something to remember
                self._contexts[node] = context

    def _new_context(self, node: int) -> Context:
        config: dict[str, bool | float | int | str] = {"partition-id": node - 1, "num-partitions": len(self._nodes)}
        return Context(run_id=0, node_id=node, node_config=config, state=RecordDict(), run_config={})


def _named(message: Message) -> Message:
    """The message with an id; one that a strategy made has none yet, and Flower's own grid sets it in this way too."""
    if not message.metadata.message_id:
        message.metadata.__dict__["_message_id"] = uuid4().hex
    return message
