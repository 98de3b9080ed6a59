"""One data holder, and the rules by which it answers.

* Each stage of a (session, round, attempt) is answered once. The same bytes again get the same reply; other bytes for a
  stage already answered are refused.
* (round, attempt) only grows within a session. "masked" needs "advertise" answered before.
* The release is reserved in the ledger before a record is read and released before the reply exists.
* A refusal is the same bytes in every stage and for every reason; the reason goes to the holder's own log.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import nn

from fedlearn.agent.agreement import Agreement, agree
from fedlearn.agent.frames import REFUSAL, Frame
from fedlearn.config import RunConfig
from fedlearn.contribution import Contributor, contribute
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.errors import FedlearnError, ProtocolError, RefusedError
from fedlearn.ledger import Ledger, Reservation
from fedlearn.policy import Policy
from fedlearn.vector import read_model

__all__ = ["Agent", "Premises", "handle_many"]

_log = logging.getLogger(__name__)
# Rows of a cohort are computed in chunks, so that the float64 vectors of one chunk stay below 128 MiB.
_CHUNK_ENTRIES = 1 << 24


@dataclass(slots=True)
class Premises:
    """What the agents of one process share: policy, ledger, a warm model and the entropy of the operating system.

    In a deployment it serves one holder; in a simulation, all of them.
    """

    policy: Policy
    ledger: Ledger
    build: Callable[[RunConfig], nn.Module]
    population_size: int
    device: str
    entropy: Entropy = field(default_factory=lambda: stream_entropy(os.urandom), repr=False)
    _agreements: dict[bytes, Agreement] = field(default_factory=dict, repr=False)

    def agreement(self, body: bytes) -> Agreement:
        """What this configuration means here; derived once, checked against the policy.

        Raises:
            FedlearnError: the configuration is malformed, its plan refused, or the policy says no.
        """
        digest = hashlib.sha256(body).digest()
        if digest not in self._agreements:
            config = RunConfig.from_bytes(body)
            agreement = agree(
                config,
                self.build(config),
                population_size=self.population_size,
                device=self.device,
                entropy=self.entropy,
            )
            self.policy.check(config, agreement.plan)
            self._agreements = {digest: agreement}
        return self._agreements[digest]


@dataclass(slots=True)
class Agent:
    """One data holder. `client_id` is 16 bytes; `records` reads its data and is called only after a reservation."""

    client_id: bytes
    dataset_id: str
    records: Callable[[], Dataset] = field(repr=False)
    premises: Premises = field(repr=False)
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
            ProtocolError: another request for a stage that is answered, or a message of another attempt.
        """
        if self._position != (frame.session, frame.round, frame.attempt) or frame.stage not in self._answered:
            return None
        known, reply = self._answered[frame.stage]
        if known != digest:
            raise ProtocolError(f"a second, different request for stage {frame.stage}")
        return reply

    def advertise(self, frame: Frame) -> bytes:
        """Stage 0: take the configuration in, or refuse it."""
        position = (frame.session, frame.round, frame.attempt)
        if self._position is not None and self._position[0] == frame.session and position <= self._position:
            raise ProtocolError(f"attempt {position[1:]} after {self._position[1:]}")
        digest = hashlib.sha256(frame.body).digest()
        if self._config_of_session.setdefault(frame.session, digest) != digest:
            raise ProtocolError("the configuration changed within a session")
        agreement = self.premises.agreement(frame.body)
        self._position, self._agreement, self._answered = position, agreement, {}
        return self.client_id

    def agreed(self, frame: Frame) -> Agreement:
        """What was agreed for the attempt that `frame` names.

        Raises:
            ProtocolError: stage "advertise" of this attempt was not answered.
        """
        if self._position != (frame.session, frame.round, frame.attempt) or self._agreement is None:
            raise ProtocolError("stage masked without stage advertise of the same attempt")
        return self._agreement

    def contributor(self, frame: Frame, agreement: Agreement) -> Contributor:
        """This client in this attempt."""
        seed = (agreement.config.run.seed, frame.round, int.from_bytes(self.client_id, "big") % 2**63)
        return Contributor(self.records, seed)

    def remember(self, frame: Frame, digest: bytes, reply: bytes) -> bytes:
        """Keep the reply until the attempt ends, for the same request once more."""
        self._answered[frame.stage] = (digest, reply)
        return reply


@dataclass(slots=True)
class _Request:
    agent: Agent
    frame: Frame
    digest: bytes
    reply: bytes | None = None


def handle_many(agents: Sequence[Agent], stage: str, requests: Sequence[bytes]) -> list[bytes]:
    """The replies of several agents of one process to one frame each, in order; `Agent.handle` is its list of one.

    Reservations and releases of the whole list are one transaction each; clip, truncation and noise are per agent.
    """
    parsed = [_parse(agent, stage, data) for agent, data in zip(agents, requests, strict=True)]
    waiting = [request for request in parsed if request is not None and request.reply is None]
    if stage == "masked":
        _contribute(waiting)
    else:
        for request in waiting:
            request.reply = _answer(request)
    return [REFUSAL if request is None or request.reply is None else request.reply for request in parsed]


def _parse(agent: Agent, stage: str, data: bytes) -> _Request | None:
    try:
        frame = Frame.from_bytes(data)
        if frame.stage != stage:
            raise ProtocolError(f"a frame of stage {frame.stage} in a message of stage {stage}")
        digest = _digest(frame.body)
        return _Request(agent, frame, digest, agent.earlier_reply(frame, digest))
    except ProtocolError as error:
        _refuse(agent, error)
        return None


@lru_cache(maxsize=4)
def _digest(body: bytes) -> bytes:
    """SHA-256; a cohort is sent one and the same body."""
    return hashlib.sha256(body).digest()


def _answer(request: _Request) -> bytes | None:
    agent, frame = request.agent, request.frame
    if frame.stage == "identify":
        return agent.client_id
    try:
        return agent.remember(frame, request.digest, agent.advertise(frame))
    except FedlearnError as error:
        _refuse(agent, error)
        return None


def _refuse(agent: Agent, error: FedlearnError) -> None:
    """The reason stays here."""
    _log.info("%s refuses: %s", agent.dataset_id, error)


def _contribute(requests: Sequence[_Request]) -> None:
    """Stage "masked": reserve -> read and train -> release -> reply, for all requests that may."""
    groups: dict[int, list[_Request]] = {}
    for request in requests:
        try:
            groups.setdefault(id(request.agent.agreed(request.frame)), []).append(request)
        except ProtocolError as error:
            _refuse(request.agent, error)
    for group in groups.values():
        agreement = group[0].agent.agreed(group[0].frame)
        size = max(1, _CHUNK_ENTRIES // max(1, agreement.layout.dimension))
        reserved = _reserve(group, agreement)
        for start in range(0, len(reserved), size):
            _contribute_chunk(reserved[start : start + size], agreement)


def _reserve(group: Sequence[_Request], agreement: Agreement) -> list[tuple[_Request, int | None]]:
    """Reserve the release of each request; whoever's budget refuses is left out, before a record is read."""
    if agreement.plan.ledger_event is None:
        return [(request, None) for request in group]
    ledger = group[0].agent.premises.ledger
    entries = [_reservation(request, agreement) for request in group]
    try:
        return list(zip(group, ledger.reserve(entries), strict=True))
    except RefusedError:
        pass
    reserved: list[tuple[_Request, int | None]] = []
    for request, entry in zip(group, entries, strict=True):
        try:
            reserved.append((request, ledger.reserve([entry])[0]))
        except RefusedError as error:
            _refuse(request.agent, error)
    return reserved


def _reservation(request: _Request, agreement: Agreement) -> Reservation:
    assert agreement.plan.ledger_event is not None
    return Reservation(
        dataset_id=request.agent.dataset_id,
        session=request.frame.session,
        round=request.frame.round,
        attempt=request.frame.attempt,
        event=agreement.plan.ledger_event.to_bytes(),
        max_releases=agreement.plan.releases,
    )


def _contribute_chunk(chunk: Sequence[tuple[_Request, int | None]], agreement: Agreement) -> None:
    first = chunk[0][0]
    premises = first.agent.premises
    try:
        weights = read_model(first.frame.body, agreement.layout)
        alike = [(request, row) for request, row in chunk if request.digest == first.digest]
        if len(alike) < len(chunk):
            raise ProtocolError("one cohort was sent different models")
    except ProtocolError as error:
        premises.ledger.void([row for _, row in chunk if row is not None])
        for request, _ in chunk:
            _refuse(request.agent, error)
        return
    lanes = contribute(
        weights,
        [request.agent.contributor(request.frame, agreement) for request, _ in chunk],
        work=agreement.work,
        mechanism=agreement.mechanism,
        plan=agreement.plan,
        entropy=premises.entropy,
    )
    premises.ledger.release([row for _, row in chunk if row is not None])
    for (request, _), row_lanes in zip(chunk, lanes, strict=True):
        reply = row_lanes.astype("<u4").tobytes()
        request.reply = request.agent.remember(request.frame, request.digest, reply)
