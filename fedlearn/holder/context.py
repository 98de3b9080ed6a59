"""A data holder in a simulation without masking, and what all holders of one process share.

* Each stage of a (session, round, attempt) is answered once. The same bytes again get the same reply; other bytes for a
  stage already answered are refused.
* (round, attempt) only grows within a session. "masked" needs "advertise" answered before.
* The release is reserved in the ledger before a record is read and released before the reply exists.
* A refusal is the same bytes in every stage and for every reason; the reason goes to the holder's own log.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import nn

from fedlearn.config.run_config import Compile, RunConfig
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.pending_replies import Contributed, PendingReply, answer_all, contributed
from fedlearn.holder.positions import Positions
from fedlearn.ledger import Ledger
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.discrete_gaussian import discrete_gaussian
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement, agree
from fedlearn.round.contribution import Contributor
from fedlearn.stages import ADVERTISE, IDENTIFY, MASKED
from fedlearn.training.local import OnFailure, StepNoise

__all__ = ["Agent", "Holder", "HolderContext", "handle_many"]

_log = logging.getLogger(__name__)

KeepModel = Callable[[str, Vector, Agreement], None]


@dataclass(slots=True)
class HolderContext:
    """What the agents of one process share: policy, ledger, a warm model and the entropy of the operating system.

    In a deployment it serves one holder; in a simulation, all of them.
    """

    policy: Policy
    ledger: Ledger
    positions: Positions
    build: Callable[[RunConfig], nn.Module]
    population_size: int
    device: str
    keep_model: KeepModel = lambda *_: None  # the final one of a session
    same_user: bool = False  # the coordinator's code runs as the user who owns records and key
    contributed: Contributed = contributed  # a simulation may have it done by several processes
    compiled: Compile = False  # only a simulation trains long enough
    alone: bool = True  # gradients of a record are the same bits whoever else is there; a simulation protects nobody
    on_failure: OnFailure = lambda _: None  # local work that failed: a run's to count, or a holder's to see
    step_noise: StepNoise = discrete_gaussian  # a simulation may have a faster one (docs/specification/privacy.md 2.4)
    # Coins and noise on one stream, keys and shares on another: masked or not, the same noise is drawn in a test.
    entropy: Entropy = field(default_factory=lambda: stream_entropy(os.urandom), repr=False)
    key_entropy: Entropy = field(default_factory=lambda: stream_entropy(os.urandom), repr=False)
    _agreements: dict[bytes, Agreement] = field(default_factory=dict, repr=False)
    _agreeing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def open_account(self, dataset_id: str | Sequence[str], *, order: float | None) -> None:
        """Open accounts in the ledger with the policy's budget; none where it has no guarantee.

        Raises:
            RefusedError: one has another budget.
        """
        policy = self.policy
        if policy.privacy_unit is None or policy.max_epsilon is None or policy.max_delta is None:
            return
        self.ledger.open_dataset(
            dataset_id,
            privacy_unit=policy.privacy_unit,
            max_epsilon=policy.max_epsilon,
            max_delta=policy.max_delta,
            order=order,
        )

    def close(self) -> None:
        """Close the ledger's file."""
        self.ledger.close()
        self.positions.close()

    def agreement(self, body: bytes) -> Agreement:
        """What this configuration means here; derived once, checked against the policy.

        Raises:
            FedlearnError: the configuration is malformed, its plan refused, or the policy says no.
        """
        digest = hashlib.sha256(body).digest()
        with self._agreeing:
            if digest not in self._agreements:
                self._agreements = {digest: self._agree(body)}
            return self._agreements[digest]

    def _agree(self, body: bytes) -> Agreement:
        config = RunConfig.from_bytes(body)
        self.policy.check_asked(config)  # before anything that it names is built
        agreement = agree(
            config,
            self.build(config),
            population_size=self.population_size,
            device=self.device,
            entropy=self.entropy,
            step_noise=self.step_noise,
            compiled=self.compiled,
            alone=self.alone,
            on_failure=self.on_failure,
        )
        self.policy.check(config, agreement.plan)
        return agreement


@dataclass(slots=True)
class Holder:
    """Who holds which records. `client_id` has 16 bytes; `records` is called only after a reservation.

    `fingerprint` gives, by a salt, that of the records as they are stored: each release keeps it as evidence, and
    records that are known under another id are refused. None keeps nothing. It has no default: only a simulation, whose
    clients hold parts of one set and whose ledger ends with its folder, says None.
    """

    client_id: bytes
    dataset_id: str
    records: Callable[[], Dataset] = field(repr=False)
    fingerprint: Callable[[bytes], bytes] | None = field(kw_only=True, repr=False)

    def contributor(self, agreement: Agreement, round_number: int) -> Contributor:
        """This client in one round."""
        number = int.from_bytes(self.client_id, "big") % 2**63
        return agreement.contributor(self.records, round_number, client=number)

    def log_refusal(self, error: FedlearnError) -> None:
        """The reason stays here."""
        _log.info("%s refuses: %s", self.dataset_id, error)


@dataclass(slots=True)
class Agent:
    """One data holder whose vectors leave in the clear: a simulation with `masking = false`, and nothing else."""

    holder: Holder
    context: HolderContext = field(repr=False)
    _position: tuple[str, int, int] | None = None
    _agreement: Agreement | None = field(default=None, repr=False)
    _config_of_session: dict[str, bytes] = field(default_factory=dict, repr=False)
    _answered: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)

    def handle(self, stage: str, request: bytes) -> bytes:
        """The reply to one frame; never an exception, never a reason.

        Guarantees:
            nothing that depends on records leaves but the noised vector of stage "masked";
            a refusal is the same bytes for every stage and reason.
        """
        return handle_many([self], stage, [request])[0]

    def earlier_reply(self, frame: Frame, digest: bytes) -> bytes | None:
        """The reply already given to this very request; None for a stage not yet answered.

        Raises:
            ProtocolError: another request for a stage that is answered.
        """
        if self._position != (frame.session, frame.round, frame.attempt) or frame.stage not in self._answered:
            return None
        known, reply = self._answered[frame.stage]
        if known != digest:
            raise ProtocolError(f"a second, different request for stage {frame.stage}")
        return reply

    def advertise(self, frame: Frame) -> bytes:
        """Stage 0: take the configuration in, or refuse it.

        Raises:
            FedlearnError: an attempt that is over, another configuration than before, or one that is not acceptable.
        """
        position = (frame.session, frame.round, frame.attempt)
        if self._position is not None and self._position[0] == frame.session and position <= self._position:
            raise ProtocolError(f"attempt {position[1:]} after {self._position[1:]}")
        digest = hashlib.sha256(frame.body).digest()
        if self._config_of_session.setdefault(frame.session, digest) != digest:
            raise ProtocolError("the configuration changed within a session")
        agreement = self.context.agreement(frame.body)
        self._position, self._agreement, self._answered = position, agreement, {}
        return self.holder.client_id

    def turn(self, frame: Frame, digest: bytes) -> PendingReply:
        """This agent's turn to contribute.

        Raises:
            ProtocolError: stage "advertise" of this attempt was not answered.
        """
        position = (frame.session, frame.round, frame.attempt)
        if self._position != position or self._agreement is None:
            raise ProtocolError("stage masked without stage advertise of the same attempt")

        def finish(lanes: Lanes) -> bytes:
            return self.remember(frame, digest, lanes.astype("<u4").tobytes())

        def refuse(error: FedlearnError) -> bytes:
            self.holder.log_refusal(error)
            return REFUSAL

        return PendingReply(
            dataset_id=self.holder.dataset_id,
            position=position,
            contributor=self.holder.contributor(self._agreement, frame.round),
            fingerprint=self.holder.fingerprint,
            agreement=self._agreement,
            ledger=self.context.ledger,
            entropy=self.context.entropy,
            model=frame.body,
            model_hash=digest,
            finish=finish,
            refuse=refuse,
            contributed=self.context.contributed,
        )

    def remember(self, frame: Frame, digest: bytes, reply: bytes) -> bytes:
        """Keep the reply until the attempt ends, for the same request once more."""
        self._answered[frame.stage] = (digest, reply)
        return reply


def handle_many(agents: Sequence[Agent], stage: str, requests: Sequence[bytes]) -> list[bytes]:
    """The replies of several agents of one process to one frame each, in order; `Agent.handle` is its list of one."""
    answers = [_answer(agent, stage, data) for agent, data in zip(agents, requests, strict=True)]
    return answer_all(answers)


def _answer(agent: Agent, stage: str, data: bytes) -> bytes | PendingReply:
    """The reply, or for a vector not yet made the turn to make it."""
    try:
        frame = Frame.of_stage(stage, data)
        digest = _digest(frame.body)
        earlier = agent.earlier_reply(frame, digest)
        if earlier is not None:
            return earlier
        if stage == IDENTIFY:
            return agent.holder.client_id
        if stage == MASKED:
            return agent.turn(frame, digest)
        if stage != ADVERTISE:
            raise ProtocolError(f"stage {stage} without masking")
        return agent.remember(frame, digest, agent.advertise(frame))
    except FedlearnError as error:
        agent.holder.log_refusal(error)
        return REFUSAL


@lru_cache(maxsize=4)
def _digest(body: bytes) -> bytes:
    """SHA-256; a cohort is sent one and the same body."""
    return hashlib.sha256(body).digest()
