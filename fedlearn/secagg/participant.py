"""A client in one session: the rule of one, the constant refusal, and an envelope around every reply.

The five steps themselves are in `stages`. No I/O happens here: records, ledger, policy and disk are the caller's, which
hands in two functions and drives stage 2 in two halves, so that it may reserve and release between them.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedlearn.crypto.keystream import Entropy
from fedlearn.crypto.signatures import equal_in_constant_time
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.messages import (
    REFUSAL,
    Envelope,
    MaskedRequest,
    Stage,
    decode_advertise,
    encode_masked,
)
from fedlearn.secagg.stages import (
    Advertised,
    Masked,
    Member,
    Opened,
    Shared,
    Signed,
    advertise,
    mask,
    open_boxes,
    share,
    sign_survivors,
    unmask,
)
from fedlearn.secagg.transcript import ContextFields, Position

__all__ = ["AttemptBurntError", "MaskingWork", "Participant"]

Agree = Callable[
    [bytes], ContextFields
]  # canonical RunConfig -> what this client derives from it; raises FedlearnError
Advance = Callable[[int, int], None]  # makes (round, attempt) durable; raises ProtocolError where it does not grow
Contribute = Callable[[bytes | memoryview], Lanes]  # model bytes -> (d,) lanes
State = Advertised | Shared | Opened | Masked | Signed


class AttemptBurntError(ProtocolError):
    """A stage was asked twice, differently.

    Answered, a second stage 1 would encrypt new shares under old keys and nonces, a second stage 2 release twice, and
    a second stage 3 or 4 give away both shares of one client, and so its vector.
    """


@dataclass(slots=True, eq=False)
class _Attempt:
    """The live attempt. `digests` has the stages on which work began, `replies` those answered."""

    position: Position
    state: State | None = field(default=None, repr=False)
    members: tuple[bytes, ...] | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    replies: dict[int, bytes] = field(default_factory=dict, repr=False)
    over: bool = False

    def end(self) -> None:
        """Drop the secrets and the replies; every later request of this attempt is refused."""
        self.over, self.state = True, None
        self.replies.clear()


@dataclass(frozen=True, slots=True, eq=False)
class MaskingWork:
    """A stage 2 that was found good and waits for its lanes. `model` is the canonical model, of the agreed hash."""

    envelope: Envelope
    model: bytes | memoryview = field(repr=False)
    _attempt: _Attempt = field(repr=False)
    _opened: Opened = field(repr=False)

    @property
    def model_hash(self) -> bytes:
        """SHA-256 of `model`."""
        return self._opened.context.model_hash

    @property
    def stopped(self) -> bool:
        """Whether the attempt was burnt or replaced meanwhile: then nothing must be released for it."""
        return self._attempt.over


class Participant:
    """One client in one session.

    Guarantees:
        a stage of an attempt is answered once; the same request gets the same bytes, and waits for them;
        another request for a stage begun or answered ends the attempt, and nothing of it is answered any more;
        a stage out of order, or of an older attempt, is refused and changes nothing; so is a refused stage 0;
        refused content in stages 1 to 4 ends the attempt;
        a valid stage 0 of a later attempt ends the live one;
        a refusal is the same 16 bytes for every reason; every reply is signed with its question.
    """

    def __init__(
        self,
        member: Member,
        session: bytes,
        *,
        entropy: Entropy,
        agree: Agree,
        advance: Advance,
        on_refusal: Callable[[int, FedlearnError], None],
        threads: int = 1,
    ) -> None:
        """`entropy` is the operating system's; `on_refusal` is told the reasons, which are the holder's alone."""
        self.member, self.session = member, session
        self._entropy, self._agree, self._advance = entropy, agree, advance
        self._on_refusal, self._threads = on_refusal, threads
        self._attempt: _Attempt | None = None
        self._changed = threading.Condition()

    def answer(self, stage: Stage, position: Position, body: bytes) -> bytes:
        """The sealed reply to stages 0, 1, 3 and 4. `position` is what the frame's header says."""
        if stage is Stage.MASK:
            raise AssertionError("stage 2 has two halves: begin_masked, finish_masked")
        with self._changed:
            envelope = Envelope(position, stage, self.member.client_id, hashlib.sha256(body).digest())
            try:
                known = self._known_reply(envelope)
                return self._first_reply(envelope, body) if known is None else known
            except FedlearnError as error:
                return self._refuse(envelope, error)

    def answer_masked(
        self, position: Position, body: bytes, contribute: Contribute, release: Callable[[], None]
    ) -> bytes:
        """The sealed reply to stage 2.

        `contribute` reserves, reads and trains; `release` turns the reservation into a release, durably, before the
        first byte of the reply exists. Neither is called for a request that is refused, or was answered before.
        """
        work = self.begin_masked(position, body)
        if isinstance(work, bytes):
            return work
        try:
            lanes = contribute(work.model)
            if not work.stopped:
                release()
        except FedlearnError as error:
            return self.give_up(work, error)
        except BaseException:
            self.give_up(work, ProtocolError("the work for a masked vector broke off"))
            raise
        return self.finish_masked(work, lanes)

    def begin_masked(self, position: Position, body: bytes) -> MaskingWork | bytes:
        """The first half of stage 2: work to be done, or a sealed reply (given before, or a refusal).

        The same request, while its work goes on in another thread, waits. Whoever gets work must end it, with
        `finish_masked` or `give_up`.
        """
        with self._changed:
            request = self._take_apart(position, body)
            digest = hashlib.sha256(body).digest() if request is None else request.digest
            envelope = Envelope(position, Stage.MASK, self.member.client_id, digest)
            try:
                known = self._known_reply(envelope)
                return self._begin(envelope, request) if known is None else known
            except FedlearnError as error:
                return self._refuse(envelope, error)

    def finish_masked(self, work: MaskingWork, lanes: Lanes) -> bytes:
        """The second half of stage 2: the sealed masked vector, for (d,) `lanes` that the ledger has released."""
        following, masked = mask(work._opened, lanes, threads=self._threads)
        reply = work.envelope.seal(self.member.key, encode_masked(masked))
        with self._changed:
            if work.stopped:
                return self._refuse(work.envelope, AttemptBurntError("the attempt ended while its vector was made"))
            return self._keep(work._attempt, work.envelope, following, reply)

    def give_up(self, work: MaskingWork, reason: FedlearnError) -> bytes:
        """End the attempt instead: the sealed refusal."""
        with self._changed:
            self._end(work._attempt)
            return self._refuse(work.envelope, reason)

    def forget(self) -> None:
        """Drop what is left of the last attempt: its secrets and its replies."""
        with self._changed:
            if self._attempt is not None:
                self._end(self._attempt)

    def _take_apart(self, position: Position, body: bytes) -> MaskedRequest | None:
        """Request 2 in its parts, the model hashed once; None where U1 is unknown or the parts are not there."""
        attempt = self._attempt
        if attempt is None or attempt.position != position or attempt.members is None:
            return None
        try:
            return MaskedRequest.from_bytes(body, attempt.members)
        except ProtocolError:
            return None

    def _known_reply(self, envelope: Envelope) -> bytes | None:
        """The reply given before to this very request; None where it is this request's turn.

        Raises:
            ProtocolError: it is not, or the attempt is over.
        """
        attempt, stage = self._attempt, envelope.stage
        if envelope.position.session != self.session:
            raise ProtocolError("a message of another session")
        if attempt is None or envelope.position > attempt.position:
            if stage is not Stage.ADVERTISE:
                raise ProtocolError("a stage before stage 0 of its attempt")
            return None
        if envelope.position < attempt.position or attempt.over:
            raise ProtocolError("a message of an attempt that is over")
        if stage not in attempt.digests:
            if Stage(stage - 1) not in attempt.replies:
                raise ProtocolError(f"stage {stage} out of order")
            return None
        if not equal_in_constant_time(attempt.digests[stage], envelope.request_digest):
            self._end(attempt)
            raise AttemptBurntError(f"a second, different request for stage {stage}")
        self._changed.wait_for(lambda: attempt.over or stage in attempt.replies)
        if attempt.over:
            raise ProtocolError("a message of an attempt that is over")
        return attempt.replies[stage]

    def _first_reply(self, envelope: Envelope, body: bytes) -> bytes:
        if envelope.stage is Stage.ADVERTISE:
            return self._start(envelope, body)
        attempt = self._attempt
        if attempt is None:
            raise AssertionError("a later stage has an attempt")
        with self._begun(attempt, envelope):
            following, reply = self._step(attempt, body)
        if isinstance(following, Shared):
            attempt.members = following.members
        return self._keep(attempt, envelope, following, envelope.seal(self.member.key, reply))

    def _start(self, envelope: Envelope, body: bytes) -> bytes:
        """Stage 0: whatever is refused here leaves nothing behind; whatever is answered was made durable before."""
        context, config = decode_advertise(body)
        if context.position != envelope.position:
            raise ProtocolError("a context of another attempt than the message")
        fields = self._agree(config)
        if context.fields != fields:
            raise ProtocolError("a context that differs from what this client derives")
        fields.check()
        self._advance(context.position.round, context.position.attempt)
        state, reply = advertise(context, self.member, self._entropy)
        if self._attempt is not None:
            self._end(self._attempt)
        self._attempt = _Attempt(context.position, digests={Stage.ADVERTISE: envelope.request_digest})
        return self._keep(self._attempt, envelope, state, envelope.seal(self.member.key, reply))

    def _step(self, attempt: _Attempt, body: bytes) -> tuple[State | None, bytes]:
        match attempt.state:
            case Advertised() as state:
                return share(state, body, self.member, self._entropy)
            case Masked() as state:
                return sign_survivors(state, body, self.member)
            case Signed() as state:
                return None, unmask(state, body, self.member)
        raise AssertionError("the order of stages fixes the state")

    def _begin(self, envelope: Envelope, request: MaskedRequest | None) -> MaskingWork:
        attempt = self._attempt
        if attempt is None:
            raise AssertionError("stage 1 was answered")
        state = attempt.state
        if not isinstance(state, Shared):
            raise AssertionError("stage 1 was answered")
        with self._begun(attempt, envelope):
            if request is None:
                raise ProtocolError("a request for a masked vector that cannot be taken apart")
            opened = open_boxes(state, request, self.member)
        attempt.state = opened
        return MaskingWork(envelope, request.model, attempt, opened)

    @contextmanager
    def _begun(self, attempt: _Attempt, envelope: Envelope) -> Iterator[None]:
        """From here on this stage has its one request; refused content ends the attempt."""
        attempt.digests[envelope.stage] = envelope.request_digest
        try:
            yield
        except BaseException:
            self._end(attempt)
            raise

    def _keep(self, attempt: _Attempt, envelope: Envelope, state: State | None, reply: bytes) -> bytes:
        attempt.state, attempt.replies[envelope.stage] = state, reply
        self._changed.notify_all()
        return reply

    def _end(self, attempt: _Attempt) -> None:
        attempt.end()
        self._changed.notify_all()

    def _refuse(self, envelope: Envelope, reason: FedlearnError) -> bytes:
        self._on_refusal(envelope.stage, reason)
        return envelope.seal(self.member.key, REFUSAL)
