"""A data holder whose vectors leave masked: `secagg.participant` with policy, ledger and records around it."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedlearn.certificate import attestation
from fedlearn.certificate.attestation import Attestation, Attested
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.holder.context import Holder, HolderContext
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.pending_replies import PendingReply, answer_all
from fedlearn.ledger import SessionState
from fedlearn.model.layout import read_model
from fedlearn.policy.roster import Roster
from fedlearn.round.agreement import Agreement
from fedlearn.round.context_fields import context_fields_of
from fedlearn.secagg import messages
from fedlearn.secagg.messages import Envelope, Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import ContextFields, Position
from fedlearn.stages import ADVERTISE, ATTEST, IDENTIFY, MASKED, STAGES_OF_ATTEMPT

__all__ = ["MaskedAgent", "handle_many_masked", "position_of", "seal"]

_STAGES = dict(zip(STAGES_OF_ATTEMPT, Stage, strict=True))
_NUMBERS = {IDENTIFY: messages.IDENTIFY, ATTEST: attestation.ATTEST, **_STAGES}

_SESSIONS_KEPT = 16


@dataclass(slots=True)
class _Session:
    """One run at this holder. Its one configuration and its one attested model are on disk, with its position."""

    participant: Participant
    config: bytes = b""
    agreement: Agreement | None = None
    attesting: threading.Lock = field(default_factory=threading.Lock, repr=False)


@dataclass(slots=True)
class MaskedAgent:
    """One data holder. Sessions share the ledger and nothing else."""

    holder: Holder
    member: Member
    roster: Roster
    context: HolderContext = field(repr=False)
    _sessions: dict[str, _Session] = field(default_factory=dict, repr=False)

    def handle(self, stage: str, request: bytes) -> bytes:
        """The reply to one frame; never an exception, never a reason.

        Guarantees:
            nothing that depends on records leaves but the masked, noised vector of stage "masked";
            a refusal is the same bytes for every stage and reason, signed like every reply.
        """
        return handle_many_masked([self], stage, [request])[0]

    def session(self, name: str, *, begin: bool) -> _Session:
        """The session of that name; a new one begins with stage "advertise" alone.

        Only the latest sessions are kept: one that is dropped has lost its attempt, never its position on disk.

        Raises:
            ProtocolError: it is unknown, and not to begin.
        """
        if name not in self._sessions:
            if not begin:
                raise ProtocolError("a stage of an unknown session")
            while len(self._sessions) >= _SESSIONS_KEPT:
                self._sessions.pop(next(iter(self._sessions))).participant.forget()
            self._sessions[name] = session = _Session(
                Participant(
                    self.member,
                    bytes.fromhex(name),
                    entropy=self.context.key_entropy,
                    agree=lambda config: self._agree(session, name, config),
                    advance=lambda number, attempt: self._advance(session, name, number, attempt),
                    on_refusal=lambda _, error: self.holder.log_refusal(error),
                )
            )
        return self._sessions[name]

    def forget(self) -> None:
        """Drop every attempt's secrets and replies; positions and bookings stay on disk."""
        while self._sessions:
            self._sessions.popitem()[1].participant.forget()

    def turn(self, frame: Frame) -> bytes | PendingReply:
        """The reply to stage "masked", or the turn to make it."""
        session = self.session(frame.session, begin=False)
        participant = session.participant
        work = participant.begin_masked(position_of(frame), frame.body)
        if isinstance(work, bytes):
            return work
        if session.agreement is None:
            raise AssertionError("stage 0 was answered")
        return PendingReply(
            dataset_id=self.holder.dataset_id,
            position=(frame.session, frame.round, frame.attempt),
            contributor=self.holder.contributor(session.agreement, frame.round),
            fingerprint=self.holder.fingerprint,
            agreement=session.agreement,
            ledger=self.context.ledger,
            entropy=self.context.entropy,
            model=work.model,
            model_hash=work.model_hash,
            finish=lambda lanes: participant.finish_masked(work, lanes),
            refuse=lambda error: participant.give_up(work, error),
            stopped=lambda: work.stopped,
            contributed=self.context.contributed,
        )

    def attest(self, frame: Frame) -> bytes:
        """What this holder booked for the session, signed over the model that it is shown: one model a session.

        From then on the session is over: no attempt of it begins, and one that goes on ends; also after a restart, for
        the session's configuration and the model's hash are on disk. A model of which nothing here is a part, for the
        session released nothing, is not kept.

        Raises:
            FedlearnError: the session never began, another model was attested, or it does not fit the run's.
        """
        config = self.context.positions.configuration(frame.session)
        if config is None:
            raise ProtocolError("an attestation for a session that never began, or released nothing and is long ago")
        session = self.session(frame.session, begin=True)
        digest = hashlib.sha256(frame.body).digest()
        with session.attesting:
            agreement = session.agreement or self.context.agreement(config)
            weights = read_model(frame.body, agreement.layout)
            # Before what was booked is read: no attempt begins any more.
            self.context.positions.attest(self.holder.dataset_id, frame.session, digest)
            session.participant.forget()
            state = self.context.ledger.session(frame.session, self.holder.dataset_id)
            if state.releases:
                self.context.keep_model(frame.session, weights, agreement)
            return self._attestation(frame.session, config, digest, state)

    def _attestation(self, session: str, config: bytes, model_hash: bytes, state: SessionState) -> bytes:
        attested = Attested(
            session=bytes.fromhex(session),
            config_hash=hashlib.sha256(config).digest(),
            roster_hash=self.roster.sha256,
            model_hash=model_hash,
            releases=state.releases,
            ledger_head=state.head,
            events_hash=state.events_hash,
        )
        return Attestation.sign(
            attested,
            self.member.key,
            client_id=self.holder.client_id,
            dataset_id=self.holder.dataset_id,
            entries=state.entries,
            unconfirmed=self.context.policy.unconfirmed,
            unconfirmed_members=self.context.policy.unconfirmed_members,
            same_user=self.context.same_user,
        ).to_reply()

    def _agree(self, session: _Session, name: str, config: bytes) -> ContextFields:
        """What the live attempt rests on stays: another configuration than the pinned one is refused before."""
        self.context.positions.check_configuration(name, config)
        agreement = self.context.agreement(config)
        session.config, session.agreement = config, agreement
        return context_fields_of(agreement.config, agreement.plan, agreement.layout, self.roster.sha256)

    def _advance(self, session: _Session, name: str, round_number: int, attempt: int) -> None:
        self.context.policy.check_attempt(attempt)
        self.context.positions.advance(self.holder.dataset_id, name, round_number, attempt, session.config)


def position_of(frame: Frame) -> Position:
    """The attempt that a frame's header names."""
    return Position(bytes.fromhex(frame.session), frame.round, frame.attempt)


def seal(member: Member, frame: Frame, reply: bytes) -> bytes:
    """`reply` in the envelope of whoever was asked, bound to the frame that asked."""
    digest = hashlib.sha256(frame.body).digest()
    return Envelope(position_of(frame), _NUMBERS[frame.stage], member.client_id, digest).seal(member.key, reply)


def handle_many_masked(agents: Sequence[MaskedAgent], stage: str, requests: Sequence[bytes]) -> list[bytes]:
    """The replies of several agents of one process to one frame each, in order; `handle` is its list of one."""
    answers = [_answer(agent, stage, data) for agent, data in zip(agents, requests, strict=True)]
    return answer_all(answers)


def _answer(agent: MaskedAgent, stage: str, data: bytes) -> bytes | PendingReply:
    try:
        frame = Frame.of_stage(stage, data)
        position = position_of(frame)
    except ProtocolError as error:  # whoever sent it cannot be answered with a signature over what it asked
        agent.holder.log_refusal(error)
        return REFUSAL
    if stage == IDENTIFY:
        return seal(agent.member, frame, agent.member.client_id)
    try:
        if stage == MASKED:
            return agent.turn(frame)
        if stage == ATTEST:
            return seal(agent.member, frame, agent.attest(frame))
        participant = agent.session(frame.session, begin=stage == ADVERTISE).participant
        return participant.answer(_STAGES[stage], position, frame.body)
    except FedlearnError as error:
        agent.holder.log_refusal(error)
        return seal(agent.member, frame, REFUSAL)
