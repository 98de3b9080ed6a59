"""Between a node and its holder's agent: sees every request and reply, and plays a bundle that is no dumb pipe."""

import threading
from collections.abc import Callable
from pathlib import Path

from fedlearn.errors import ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import AgentServer, ask
from tests.soak.witness import Witness

Ask = Callable[[bytes], bytes]
# Given a way to ask the agent and the node's frame, gives what the node is answered.
Trick = Callable[[Ask, bytes], bytes]

_FRAMES_KEPT = 40


class Tap:
    """Listens beside the agent's socket in `home`; the member's next request at a trick's stage gets the trick."""

    def __init__(self, member: int, home: Path, witness: Witness) -> None:
        self.path, self._agent = home / "tap.sock", home / "agent.sock"
        self.path.unlink(missing_ok=True)
        self._ask = witness.watching(member, lambda frame: ask(self._agent, 0, frame, seconds=600))
        self._lock = threading.Lock()
        self._trick: tuple[str, Trick] | None = None
        self.frames: list[Frame] = []  # the latest that came
        self._server = AgentServer(self.path, self._answer, clients=1, at_once=16)

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def play(self, stage: str, trick: Trick) -> None:
        """Do this once."""
        with self._lock:
            self._trick = stage, trick

    def _answer(self, client: int, stage: str, frame: bytes) -> bytes:
        del client
        with self._lock:
            self.frames = [*self.frames, Frame.from_bytes(frame)][-_FRAMES_KEPT:]
            trick = self._trick[1] if self._trick and self._trick[0] == stage else None
            if trick:
                self._trick = None
        try:
            return trick(self._ask, frame) if trick else self._ask(frame)
        except ProtocolError:  # as a node's own handler does when the agent is away
            return REFUSAL
