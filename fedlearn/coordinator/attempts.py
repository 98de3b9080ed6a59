"""One attempt of a round at the coordinator: from a cohort to the sum of what it sent, masked or in the clear."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from fedlearn.policy.roster import Roster
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.aggregator import Aggregator, AttemptFailedError
from fedlearn.secagg.messages import REFUSAL, Stage
from fedlearn.secagg.transcript import Context, ContextFields, Position
from fedlearn.stages import ADVERTISE, MASKED, STAGES_OF_ATTEMPT

__all__ = [
    "Ask",
    "Attempt",
    "AttemptFailedError",
    "CohortSums",
    "Receive",
    "Summed",
    "masked_attempt",
    "plain_attempt",
]


_log = logging.getLogger(__name__)

# Takes one member's reply; whether the member has now answered, well or badly. False: its reply is still waited for.
Receive = Callable[[int, bytes], bool]
# Sends each member (its position in the roster) its body of one stage, and hands on the replies that come in time.
Ask = Callable[[str, Mapping[int, bytes], Receive], None]


@dataclass(frozen=True, slots=True)
class Summed:
    """What an attempt gave: (d,) lanes modulo 2^32, how many clients they are the sum of, and the transcript's hash c2.

    `transcript` is None where masking is off.
    """

    lanes: Lanes = field(repr=False)
    survivors: int
    transcript: bytes | None


class CohortSums(Protocol):
    """One attempt at clients of a simulation that share an engine, which sums their vectors where they are made."""

    def agree(self, cohort: Sequence[int], config: bytes) -> Sequence[int]:
        """Who of the cohort accepts the run, increasing."""

    def total(self, members: Sequence[int], model: bytes) -> Summed:
        """The sum of what these members send, with what stands for their noise in it.

        Raises:
            AttemptFailedError: nothing can be summed.
        """


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to be made; it is spent once `before_vectors` made it durable that vectors are asked for.

    `sums` is there where a simulation's engine sums a cohort itself; then nobody is asked one by one.
    """

    cohort: Sequence[int]
    config: bytes = field(repr=False)
    model: bytes = field(repr=False)
    dimension: int
    min_survivors: int
    ask: Ask
    before_vectors: Callable[[], None]
    sums: CohortSums | None = None


def plain_attempt(attempt: Attempt) -> Summed:
    """Masking off (simulation only): the coordinator sees each client's vector, or is given their sum.

    Raises:
        AttemptFailedError: fewer than `min_survivors` accept, or send a vector.
    """
    refused: set[int] = set()
    try:
        return _plain_sum(attempt, refused)
    except AttemptFailedError as error:
        raise _saying_who_refused(error, len(refused), attempt) from None


def _plain_sum(attempt: Attempt, refused: set[int]) -> Summed:
    if attempt.sums is not None:
        agreed = attempt.sums.agree(attempt.cohort, attempt.config)
        refused |= set(attempt.cohort) - set(agreed)
    else:
        agreed = sorted(_answers(attempt, ADVERTISE, dict.fromkeys(attempt.cohort, attempt.config), refused))
    _require(len(agreed), attempt.min_survivors, "accept the run")
    attempt.before_vectors()
    summed = attempt.sums.total(agreed, attempt.model) if attempt.sums else _sum_of_replies(attempt, agreed, refused)
    _require(summed.survivors, attempt.min_survivors, "sent a vector")
    return summed


def _saying_who_refused(error: AttemptFailedError, refused: int, attempt: Attempt) -> AttemptFailedError:
    """The same failure with how many of those asked refused in some stage: a server knows no more of a refusal."""
    return AttemptFailedError(f"{error}; refused by {refused} of {len(attempt.cohort)}")


def _sum_of_replies(attempt: Attempt, members: Sequence[int], refused: set[int]) -> Summed:
    replies = _answers(attempt, MASKED, dict.fromkeys(members, attempt.model), refused)
    vectors = [np.frombuffer(reply, "<u4") for reply in replies.values() if len(reply) == 4 * attempt.dimension]
    total = np.zeros(attempt.dimension, dtype=np.uint32)
    for vector in vectors:
        total += vector
    return Summed(total, len(vectors), transcript=None)


def masked_attempt(attempt: Attempt, *, fields: ContextFields, roster: Roster, position: Position) -> Summed:
    """The five stages of secure aggregation: the coordinator learns the sum and who is in it.

    Raises:
        AttemptFailedError: too few clients in a stage, or what they sent does not add up; nothing is unmasked.
    """
    ids = [entry.client_id for entry in roster.members]
    members = {client_id: member for member, client_id in enumerate(ids)}
    context = Context(position, hashlib.sha256(attempt.model).digest(), fields)
    aggregator = Aggregator(
        context,
        attempt.config,
        model=attempt.model,
        roster=roster.keys,
        asked=[ids[member] for member in attempt.cohort],
    )
    try:
        for stage, name in zip(Stage, STAGES_OF_ATTEMPT, strict=True):
            if stage is Stage.MASK:
                attempt.before_vectors()
            bodies = {members[client]: request.to_bytes() for client, request in aggregator.requests().items()}
            attempt.ask(name, bodies, partial(_receive, aggregator, stage, ids))
            aggregator.close_stage()
        result = aggregator.unmask()
    except AttemptFailedError as error:
        raise _saying_who_refused(error, len(aggregator.refused), attempt) from None
    finally:
        for incident in aggregator.incidents:
            _log.info("stage %s, client %s: %s", incident.stage.name, incident.client_id.hex(), incident.reason)
    return Summed(result.lanes, len(result.survivors), result.masking_hash)


def _receive(aggregator: Aggregator, stage: Stage, ids: Sequence[bytes], member: int, reply: bytes) -> bool:
    return aggregator.receive(stage, ids[member], reply)


def _answers(attempt: Attempt, stage: str, bodies: Mapping[int, bytes], refused: set[int]) -> dict[int, bytes]:
    """The first reply of each member that does not refuse, by member: unsigned, for there is no roster.

    Whoever refuses is added to `refused`.
    """
    answers: dict[int, bytes] = {}

    def receive(member: int, reply: bytes) -> bool:
        answers.setdefault(member, reply)
        return True

    attempt.ask(stage, bodies, receive)
    refused |= {member for member, reply in answers.items() if reply == REFUSAL}
    return {member: reply for member, reply in sorted(answers.items()) if reply != REFUSAL}


def _require(count: int, least: int, did: str) -> None:
    if count < least:
        raise AttemptFailedError(f"{count} clients {did}; expected at least min_survivors = {least}")
