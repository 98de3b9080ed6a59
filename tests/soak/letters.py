"""Faults of messages: what becomes of one letter between the coordinator and an agent, and how that shows."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from flwr.app import Context, Error, Message

from fedlearn.holder.frames import REFUSAL, Frame
from tests.faults.bad_replies import BAD_REPLIES, in_the_place_of
from tests.faults.lossy_grid import Fate, LossyGrid, body_of
from tests.soak.borders import SECRET_TEXT
from tests.soak.schedule import STAGES, Fault
from tests.soak.witness import Exchange, Witness

_LATE_SECONDS = 0.4

# What the network does to a letter, or a bundle with it, and at which stages that can be.
LETTER_KINDS = (
    *((kind, STAGES) for kind in ("request lost", "reply lost", "reply late", "upload stuck", "message doubled")),
    *((kind, STAGES) for kind in ("garbage instead of a reply", "NaN instead of a reply", "error with text")),
    *((kind, STAGES) for kind in ("reply of another member", "reply of another attempt")),
    ("message of the past", STAGES[1:]),
    ("bundle asks with another model", ("masked",)),
    ("bundle asks for a second model", ("consistency",)),
    ("bundle asks for another round", STAGES[1:]),
    ("bundle sends garbage", STAGES),
    ("bundle asks out of order", ("share", "masked")),
)
_ASKED_AGAIN = (
    "request lost",
    "reply lost",
    "reply late",
    "upload stuck",
    "garbage instead",
    "NaN instead",
    "error with",
)


@dataclass
class _Expected:
    """A fault that waits for its letter, and what is known of it once that came."""

    fault: Fault
    came: bool = False
    carried: bool = False
    frame: Frame | None = None
    holds: Callable[[], bool] = lambda: False
    took: float = 0.0


class Letters:
    """The letters of one life of the coordinator. `answer` is the agents', `inject` brings about other faults.

    `inject` is told the attempt and gives how to see that the fault had its effect.
    """

    def __init__(
        self,
        witness: Witness,
        answer: Callable[[int, bytes], bytes],
        inject: Callable[[Fault, Frame], Callable[[], bool]],
    ) -> None:
        self._witness, self._answer, self._inject = witness, answer, inject
        self.grid: LossyGrid
        self._lock = threading.Lock()
        self._expected: dict[tuple[str, int], _Expected] = {}
        self._replies: dict[tuple[str, int], Message] = {}  # the last of each stage and member

    def expect(self, fault: Fault) -> bool:
        """Let the fault have the next letter of its stage to its member, unless another has it."""
        with self._lock:
            return self._expected.setdefault((fault.stage, fault.member), _Expected(fault)).fault is fault

    @property
    def expecting(self) -> int:
        """How many faults wait for their letters, or had them."""
        return len(self._expected)

    def outcomes(self) -> Iterator[tuple[Fault, bool]]:
        """Every fault that was given a letter, and whether its effect was observed; they are forgotten."""
        with self._lock:
            expected, self._expected = self._expected, {}
        for each in expected.values():
            yield each.fault, each.came and self._is_observed(each)

    def fate_of(self, stage: str, node: int, copies: int) -> Fate:
        """What the network does to a letter (`FateOf`)."""
        member = node - 1
        expected = self._expected.get((stage, member))
        whole = Fate(reply=lambda reply: self._keep(stage, member, reply))
        if expected is None or copies or expected.came:
            return whole
        fate = self._fate(expected.fault, whole)
        expected.frame = next(frame for frame in self._sent(member, newest_first=True) if frame.stage == stage)
        expected.came = fate is not None
        return fate or whole

    def carry(self, context: Context, stage: str, frame: bytes, seconds: float) -> bytes:
        """What a bundle does with a frame on its member's node, dumb pipe or not."""
        del seconds
        member = int(context.node_config["partition-id"])
        ask = self._witness.watching(member, lambda asked: self._answer(member, asked))
        with self._lock:
            expected = self._expected.get((stage, member))
            if expected is None or not expected.came or expected.carried:
                expected = None
            else:
                expected.carried = True
        return ask(frame) if expected is None else self._carry_badly(expected, ask, frame)

    def _fate(self, fault: Fault, whole: Fate) -> Fate | None:
        """None: it cannot be now."""
        match fault.kind:
            case "request lost":
                return Fate(delivered=False)
            case "reply lost":
                return Fate(reply=lambda reply: None)
            case "reply late":
                return replace(whole, delay=_LATE_SECONDS)
            case "upload stuck":
                return Fate(stuck=True)
            case "error with text":
                error = Error(2, f"<class 'ValueError'>:<'{SECRET_TEXT}'>")
                return Fate(reply=lambda reply: Message(error, reply_to=in_the_place_of(reply)))
            case "reply of another member" | "reply of another attempt":
                whose = fault.member if "attempt" in fault.kind else (fault.member + 1 + fault.number % 3) % 4
                known = self._replies.get((fault.stage, whose))
                return known and Fate(reply=lambda reply: Message(known.content, reply_to=in_the_place_of(reply)))
            case "garbage instead of a reply" | "NaN instead of a reply":
                garbage = fault.among(sorted(set(BAD_REPLIES) - {"NaN"}))
                bad = BAD_REPLIES["NaN" if fault.kind.startswith("NaN") else garbage]
                return Fate(reply=lambda reply: Message(bad, reply_to=in_the_place_of(reply)))
        return whole

    def _keep(self, stage: str, member: int, reply: Message) -> Message:
        self._replies[stage, member] = reply
        return reply

    def _carry_badly(self, expected: _Expected, ask: Callable[[bytes], bytes], frame: bytes) -> bytes:
        fault, began = expected.fault, time.monotonic()
        if fault.kind == "message doubled":
            with ThreadPoolExecutor(2) as pool:
                one, other = pool.map(ask, (frame, frame))
            expected.holds = lambda: one == other and not one.startswith(REFUSAL)
            return one
        if fault.kind.startswith(("bundle", "message of the past")):
            refused = [
                ask(lie).startswith(REFUSAL)
                for lie in made_up(fault, Frame.from_bytes(frame), list(self._sent(fault.member)))
            ]
            expected.holds = lambda: bool(refused) and all(refused)
        elif fault.kind not in dict(LETTER_KINDS):
            expected.holds = self._inject(fault, Frame.from_bytes(frame))
        reply = ask(frame)
        expected.took = time.monotonic() - began
        return reply

    def _sent(self, member: int, *, newest_first: bool = False) -> Iterator[Frame]:
        """The frames that were sent to a member."""
        for sent in list(self.grid.sent)[:: -1 if newest_first else 1]:
            if sent.node - 1 == member:
                yield Frame.from_bytes(body_of(sent.message))

    def _is_observed(self, expected: _Expected) -> bool:
        kind = expected.fault.kind
        if kind.startswith((*_ASKED_AGAIN, "reply of")):
            late = kind == "reply late"
            return self._copies(expected) >= 2 and (not late or len({e.reply for e in self._answers(expected)}) == 1)
        if kind == "ledger locked":
            return expected.took > 0.5
        return expected.holds()

    def _copies(self, expected: _Expected) -> int:
        """How often the letter was sent: more than once, where the coordinator did not believe what came first."""
        return sum(frame == expected.frame for frame in self._sent(expected.fault.member))

    def _answers(self, expected: _Expected) -> list[Exchange]:
        fault, frame = expected.fault, expected.frame
        assert frame is not None
        attempt = (frame.session, frame.round, frame.attempt)
        return [e for e in self._witness.seen if (e.member, e.stage, e.attempt) == (fault.member, fault.stage, attempt)]


def made_up(fault: Fault, frame: Frame, sent: Sequence[Frame]) -> list[bytes]:
    """What a bundle asks before it hands on the real request, given what was `sent` to its member until now."""
    here = (frame.round, frame.attempt)
    match fault.kind:
        case "bundle asks with another model" | "bundle asks for a second model":
            asked = [past for past in sent if (past.stage, past.round, past.attempt) == ("masked", *here)]
            return [replace(past, body=past.body[:-4] + bytes(4)).to_bytes() for past in asked[:1]]
        case "bundle asks for another round":
            return [replace(frame, round=frame.round + 1 + fault.number % 7).to_bytes()]
        case "bundle sends garbage":
            body = os.urandom(1 + fault.number % 5000)
            return [replace(frame, body=body, attempt=frame.attempt + 999).to_bytes()]
        case "bundle asks out of order":
            return [replace(frame, stage="unmask", body=frame.body[:100]).to_bytes()]
    past = [old for old in sent if old.stage in STAGES and (old.round, old.attempt) < here]
    return [old.to_bytes() for old in past[-3:]]
