"""What agents were asked and what they answered, seen at their door by nobody's leave: the evidence of a soak."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.errors import ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame

Attempt = tuple[str, int, int]  # session, round, attempt


@dataclass(frozen=True)
class Exchange:
    """One request and its reply. `request` and `reply` are hashes: a soak keeps no vector."""

    member: int
    stage: str
    attempt: Attempt
    request: bytes
    reply: bytes
    refused: bool


class Witness:
    """Stands between whoever asks and the agents; agents answer in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Exchange] = []

    @property
    def seen(self) -> list[Exchange]:
        """Everything until now, the first reply first."""
        with self._lock:
            return list(self._seen)

    def note(self, member: int, frame: bytes, reply: bytes) -> None:
        """Remember an exchange; what is no frame can have no answer worth remembering but a refusal."""
        try:
            asked = Frame.from_bytes(frame)
        except ProtocolError:
            assert reply.startswith(REFUSAL), "what is no frame was answered"
            return
        attempt = (asked.session, asked.round, asked.attempt)
        hashes = hashlib.sha256(asked.body).digest(), hashlib.sha256(reply).digest()
        exchange = Exchange(member, asked.stage, attempt, *hashes, refused=reply.startswith(REFUSAL))
        with self._lock:
            self._seen.append(exchange)

    def watching(self, member: int, answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """The same answers, each noted."""

        def noted(frame: bytes) -> bytes:
            reply = answer(frame)
            self.note(member, frame, reply)
            return reply

        return noted

    def vectors(self) -> list[Exchange]:
        """Every vector that left an agent."""
        return [each for each in self.seen if each.stage == "masked" and not each.refused]
