"""Secure aggregation of an audited release: the real state machines of both sides, some clients lost on the way."""

import logging
import os
from collections.abc import Callable, Mapping

import numpy as np

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attempts import Attempt, Receive, masked_attempt
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import FedlearnError
from fedlearn.model.layout import write_model
from fedlearn.policy.roster import Roster, RosterEntry
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement
from fedlearn.round.context_fields import context_fields_of
from fedlearn.secagg.messages import Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Position
from fedlearn.stages import STAGES_OF_ATTEMPT

__all__ = ["MaskedRounds"]

_log = logging.getLogger(__name__)

_STAGES = dict(zip(STAGES_OF_ATTEMPT, Stage, strict=True))


class MaskedRounds:
    """A cohort whose last `lost` members drop out while they are asked for their vectors."""

    def __init__(self, config: RunConfig, agreement: Agreement) -> None:
        """Draw everybody's keys."""
        self._agreement = agreement
        self._config = config.to_bytes()
        self._model = write_model(np.zeros(agreement.layout.dimension), agreement.layout)
        keys = [SigningKey(os.urandom(32)) for _ in range(agreement.plan.planned_cohort)]
        members = tuple(
            RosterEntry(f"client-{number}", "", number.to_bytes(16, "big"), key.public)
            for number, key in enumerate(keys)
        )
        coordinator = RosterEntry("coordinator", "", b"\xff" * 16, SigningKey(os.urandom(32)).public)
        self._roster = Roster.of(coordinator, members)
        self._fields = context_fields_of(config, agreement.plan, agreement.layout, self._roster.sha256)
        self._session, self._round = os.urandom(16), 0
        self._sent: dict[int, bytes] = {}
        self._participants = [
            self._participant(Member(entry.client_id, key, self._roster.keys))
            for entry, key in zip(members, keys, strict=True)
        ]

    def sum_of(self, lanes: Lanes) -> Lanes:
        """The unmasked sum (d,) of the rows of `lanes` (n, d), sent by the first n members; the others are lost.

        Raises:
            AttemptFailedError: the clients or the coordinator refuse.
        """
        self._round += 1
        position = Position(self._session, self._round, 0)
        self._sent = {}

        def ask(name: str, bodies: Mapping[int, bytes], receive: Receive) -> None:
            stage = _STAGES[name]
            for member, body in bodies.items():
                participant = self._participants[member]
                if stage is not Stage.MASK:
                    receive(member, participant.answer(stage, position, body))
                elif member < len(lanes):
                    self._sent[member] = participant.answer_masked(position, body, sends(member), lambda: None)
                    receive(member, self._sent[member])

        def sends(member: int) -> Callable[[bytes | memoryview], Lanes]:
            return lambda _: lanes[member]

        attempt = Attempt(
            cohort=range(len(self._participants)),
            config=self._config,
            model=self._model,
            dimension=self._agreement.plan.dimension,
            min_survivors=self._agreement.plan.min_survivors,
            ask=ask,
            before_vectors=lambda: None,
        )
        return masked_attempt(attempt, fields=self._fields, roster=self._roster, position=position).lanes

    def sent_by(self, member: int) -> Lanes:
        """The masked vector (d,) that a member sent last, as the network sees it."""
        size = 4 * self._agreement.plan.dimension
        return np.frombuffer(self._sent[member][:size], "<u4")

    def _participant(self, member: Member) -> Participant:
        def refused(_: int, error: FedlearnError) -> None:
            _log.info("an audited client refuses: %s", error)

        return Participant(
            member,
            self._session,
            entropy=stream_entropy(),
            agree=lambda _: self._fields,
            advance=lambda _, __: None,
            on_refusal=refused,
        )
