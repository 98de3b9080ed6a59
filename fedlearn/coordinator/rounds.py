"""The loop of a run: cohort -> agreement -> contributions -> server optimizer -> evaluation -> checkpoint."""

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.attempts import (
    Attempt,
    AttemptFailedError,
    CohortSums,
    Receive,
    Summed,
    masked_attempt,
    plain_attempt,
)
from fedlearn.coordinator.server_noise_booking import ServerNoiseBooking
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.errors import RunFailedError
from fedlearn.model.layout import Layout, write_model
from fedlearn.policy.roster import Roster
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import Lanes
from fedlearn.privacy.release import participations
from fedlearn.privacy.sampling import poisson_sample
from fedlearn.round.aggregation import finish_round, noised_sum, refuse_unless_finite
from fedlearn.round.context_fields import context_fields_of
from fedlearn.run.checkpoint import Progress, RunFolder
from fedlearn.secagg.transcript import Position

__all__ = [
    "Ask",
    "Coordinator",
    "RoundResult",
    "RunData",
    "ServerOptimizer",
    "new_progress",
    "releases_booked",
    "run_rounds",
]

_WHERE_REASONS_ARE: Final = "why a data holder refuses stands in its own log alone (log/agent.jsonl beside its policy)"
# So often in a row an attempt may end before it asks for vectors: clients that refuse once refuse always.
_ATTEMPTS_IN_VAIN: Final = 3


class ServerOptimizer(Protocol):
    """One of Flower's strategies, fed with the one aggregated reply."""

    def step(self, round_number: int, weights: Vector, update: Vector) -> Vector:
        """The next weights, (d,) float64."""

    def state(self) -> dict[str, NDArray[np.float64]]:
        """What a checkpoint must hold of it."""

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take up a state."""


class RunData(Protocol):
    """What a coordinator knows of a run's data: its schema and size on paper, public test data, never a record."""

    @property
    def config(self) -> RunConfig:
        """The run."""

    @property
    def plan(self) -> Plan:
        """What its noise, divisors and guarantee are."""

    @property
    def population_size(self) -> int:
        """Clients that may be asked."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a record as the model sees it."""

    @property
    def test(self) -> Dataset | None:
        """Public held-out records as the model sees them."""

    def build_model(self, config: RunConfig) -> nn.Module:
        """A model with the start weights of `run.seed`."""


class Ask(Protocol):
    """Sends members (positions in the roster) one stage's bodies and hands on the replies that come in time."""

    def __call__(self, stage: str, progress: Progress, bodies: Mapping[int, bytes], receive: Receive) -> None: ...


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one successful round gave; a line of metrics.jsonl. Scores are None where no public test data is known."""

    round: int
    attempt: int
    asked: int
    survivors: int
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    seconds: float


Evaluate = Callable[[Vector], tuple[float, float] | None]
OnRound = Callable[[RoundResult], None]


@dataclass(slots=True)
class Coordinator:
    """What the coordinator of one run holds; `run_rounds` drives it."""

    config: RunConfig
    plan: Plan
    layout: Layout
    population_size: int
    roster: Roster | None  # None: masking is off
    server_noise: ServerNoiseBooking | None  # None: the server adds no noise
    folder: RunFolder
    ask: Ask
    sums_at: Callable[[Progress], CohortSums] | None  # None: clients are asked one by one
    optimizer: ServerOptimizer
    evaluate: Evaluate
    epsilon_after: Callable[[int], float | None]
    on_round: OnRound | None
    progress: Progress
    weights: Vector
    patience: int = _ATTEMPTS_IN_VAIN  # attempts in a row for which too few may be there: they cost nothing but time
    answered: set[int] = field(default_factory=set)  # in this attempt, if only to refuse

    def save(self, progress: Progress, noised: Lanes | None = None) -> None:
        """Make `progress` durable, and a noised sum with it; what follows may rely on it."""
        self.progress = progress
        self.folder.save_checkpoint(progress, self.weights, self.optimizer.state(), noised)


def run_rounds(coordinator: Coordinator, *, resumed: bool) -> Progress:
    """Run until `rounds` succeeded; `resumed` after a crash or an interruption.

    Every attempt that asks for a vector is written down before it asks, so whatever a crash interrupts counts as spent.

    Raises:
        RunFailedError: the spare rounds are used up, or too few clients accept the run.
    """
    if resumed:
        _settle_interrupted_attempt(coordinator)
    coordinator.save(coordinator.progress)
    in_vain = 0
    while coordinator.progress.round < coordinator.config.run.rounds:
        started = time.perf_counter()
        cohort = _choose_cohort(coordinator)
        try:
            summed = _attempt(coordinator, cohort)
        except AttemptFailedError as error:
            in_vain = 0 if coordinator.progress.asking else in_vain + 1
            _give_up_attempt(coordinator, asked=len(cohort), in_vain=in_vain, error=error)
            continue
        in_vain = 0
        noised = _add_noise(coordinator, summed, asked=len(cohort))
        _book(coordinator, asked=len(cohort), survivors=summed.survivors, transcript=_hex(summed.transcript))
        _finish(coordinator, noised, asked=len(cohort), survivors=summed.survivors, started=started)
    return coordinator.progress


def _attempt(coordinator: Coordinator, cohort: Sequence[int]) -> Summed:
    """One attempt of the current round.

    Raises:
        AttemptFailedError: too few clients, or what they sent does not add up.
    """
    config, progress = coordinator.config, coordinator.progress

    coordinator.answered.clear()

    def ask(stage: str, bodies: Mapping[int, bytes], receive: Receive) -> None:
        def take(member: int, reply: bytes) -> bool:
            coordinator.answered.add(member)
            return receive(member, reply)

        coordinator.ask(stage, progress, bodies, take)

    def before_vectors() -> None:
        coordinator.save(replace(progress, asking=True, attempts_asked=progress.attempts_asked + 1))
        if coordinator.server_noise:
            coordinator.server_noise.make(progress)

    attempt = Attempt(
        cohort=cohort,
        config=config.to_bytes(),
        model=write_model(coordinator.weights, coordinator.layout),
        dimension=coordinator.plan.dimension,
        min_survivors=_least_survivors(config),
        ask=ask,
        before_vectors=before_vectors,
        sums=coordinator.sums_at(progress) if coordinator.sums_at else None,
    )
    if coordinator.roster is None:
        return plain_attempt(attempt)
    fields = context_fields_of(config, coordinator.plan, coordinator.layout, coordinator.roster.sha256)
    position = Position(bytes.fromhex(progress.session), progress.round + 1, progress.attempt)
    return masked_attempt(attempt, fields=fields, roster=coordinator.roster, position=position)


def _least_survivors(config: RunConfig) -> int:
    """Fewer end an attempt. A secret cohort may be empty: that it is small must not show."""
    return 0 if config.secure_aggregation.cohorts == "poisson" else config.secure_aggregation.min_survivors


def _add_noise(coordinator: Coordinator, summed: Summed, *, asked: int) -> Lanes:
    """The sum with the server's noise where the mode has it: then it is durable, and booked, before it is used."""
    noised = noised_sum(
        [summed.lanes],
        mechanism=MECHANISMS[coordinator.config.privacy.mode],
        plan=coordinator.plan,
        entropy=stream_entropy(os.urandom),
    )
    if coordinator.server_noise:
        progress = replace(
            coordinator.progress, asked=asked, survivors=summed.survivors, transcript=_hex(summed.transcript)
        )
        coordinator.save(progress, noised)
        coordinator.server_noise.keep()
    return noised


def _choose_cohort(coordinator: Coordinator) -> list[int]:
    """The members asked next: the next window of a fixed seeded order, or independent secret coins."""
    config, size = coordinator.config, coordinator.population_size
    planned = config.secure_aggregation.planned_cohort
    if config.secure_aggregation.cohorts == "poisson":
        coins = stream_entropy(os.urandom)
        sampled = [int(member) for member in poisson_sample(size, Fraction(planned, size), coins)]
        return _without_revoked(coordinator, sampled)
    order = _rotation(config.run.seed, size)
    first = coordinator.progress.attempts_asked * planned
    return _without_revoked(coordinator, sorted(int(order[(first + k) % size]) for k in range(planned)))


@lru_cache(maxsize=1)
def _rotation(seed: int, size: int) -> NDArray[np.int64]:
    """The fixed order in which clients are asked, (size,); drawn once a run, for a million take 30 ms."""
    return np.random.RandomState([seed % 2**32, 0xC0]).permutation(size)  # noqa: TID251 (public cohorts)


def _without_revoked(coordinator: Coordinator, cohort: list[int]) -> list[int]:
    """Whom the operator took out is never asked again; the roster stays as everybody accepted it."""
    if coordinator.roster is None:
        return cohort
    members, revoked = coordinator.roster.members, coordinator.folder.revoked()
    return [member for member in cohort if members[member].client_id not in revoked]


def releases_booked(config: RunConfig, population_size: int, attempts_asked: int) -> int:
    """The most releases that one client can have made after so many attempts that asked for a vector."""
    aggregation = config.secure_aggregation
    return participations(
        attempts_asked,
        planned_cohort=aggregation.planned_cohort,
        population_size=population_size,
        cohorts=aggregation.cohorts,
    )


def _hex(transcript: bytes | None) -> str | None:
    return None if transcript is None else transcript.hex()


def _book(coordinator: Coordinator, *, asked: int, survivors: int | None = None, transcript: str | None = None) -> None:
    """One line of events.jsonl: what was released, as executed. Without survivors the attempt was aborted."""
    event, progress = coordinator.plan.event, coordinator.progress
    line: dict[str, Any] = {
        "round": progress.round + 1,
        "attempt": progress.attempt,
        "asked": asked,
        "survivors": survivors or 0,
        "aborted": survivors is None,
        "transcript": transcript,
        "event": event.as_dict() if event else None,
    }
    coordinator.folder.append("events.jsonl", line)


def _give_up_attempt(coordinator: Coordinator, *, asked: int, in_vain: int, error: AttemptFailedError) -> None:
    """Go on with the next attempt. One that asked for vectors is booked as spent and uses a spare round.

    Raises:
        RunFailedError: no spare round is left, or attempt after attempt ends before vectors are asked for.
    """
    progress = coordinator.progress
    if progress.asking:
        if coordinator.server_noise:
            coordinator.server_noise.withdraw()
        _book(coordinator, asked=asked)
        _use_spare_round(coordinator, error)
        return
    are_there = len(coordinator.answered) >= _least_survivors(coordinator.config)
    if are_there:
        coordinator.save(progress.next_attempt())
    # Else nothing but its configuration was sent: the same bytes are sent again, for attempts are numbered, and a
    # holder answers few of a round.
    if in_vain > (_ATTEMPTS_IN_VAIN if are_there else coordinator.patience):
        raise RunFailedError(
            f"round {progress.round + 1}: {error}; {in_vain} attempts ended so, before a vector was asked for; "
            f"{_WHERE_REASONS_ARE}"
        )


def _use_spare_round(coordinator: Coordinator, error: AttemptFailedError | None) -> None:
    progress = coordinator.progress
    if progress.spare_rounds_left == 0:
        coordinator.save(progress.next_attempt())
        why = f"{error}; {_WHERE_REASONS_ARE}" if error else "the run was interrupted in the middle of an attempt"
        raise RunFailedError(
            f"round {progress.round + 1}: {why}; no spare round is left, and what was sent counts as spent"
        )
    coordinator.save(replace(progress.next_attempt(), spare_rounds_left=progress.spare_rounds_left - 1))


def _settle_interrupted_attempt(coordinator: Coordinator) -> None:
    """After a crash: an attempt that asked for vectors counts as spent and uses a spare round.

    If the crash came after the server drew its noise, the round is finished with that very sum.
    """
    progress, folder = coordinator.progress, coordinator.folder
    interrupted = (progress.round + 1, progress.attempt)
    folder.keep_lines("metrics.jsonl", lambda line: line["round"] <= progress.round)
    # Every event counts; only a line that the crash left unfinished goes, before the next one is added to it.
    folder.keep_lines("events.jsonl", lambda line: line["round"] <= progress.round + 1)
    if not progress.asking:
        coordinator.save(progress.next_attempt())
        return
    booked = [line for line in folder.lines("events.jsonl") if (line["round"], line["attempt"]) == interrupted]
    noised = folder.noised_sum()
    if noised is not None and progress.asked is not None and progress.survivors is not None:
        if not booked:
            _book(coordinator, asked=progress.asked, survivors=progress.survivors, transcript=progress.transcript)
        started = time.perf_counter()
        _finish(coordinator, noised, asked=progress.asked, survivors=progress.survivors, started=started)
        return
    # A sum that was booked and went with the process moved no model: its attempt is one that was aborted.
    folder.keep_lines("events.jsonl", lambda line: (line["round"], line["attempt"]) != interrupted)
    _book(coordinator, asked=booked[0]["asked"] if booked else coordinator.config.secure_aggregation.planned_cohort)
    _use_spare_round(coordinator, None)


def _finish(coordinator: Coordinator, noised: Lanes, *, asked: int, survivors: int, started: float) -> None:
    """Move the model by a noised sum, score it, make the next round durable."""
    progress = coordinator.progress
    number = progress.round + 1
    update = finish_round(
        noised,
        mechanism=MECHANISMS[coordinator.config.privacy.mode],
        plan=coordinator.plan,
        learning_rate=coordinator.config.training.learning_rate,
    )
    coordinator.weights = coordinator.optimizer.step(number, coordinator.weights, update)
    refuse_unless_finite(coordinator.weights, number)
    scores = coordinator.evaluate(coordinator.weights)
    booked = releases_booked(coordinator.config, coordinator.population_size, progress.attempts_asked)
    result = RoundResult(
        round=number,
        attempt=progress.attempt,
        asked=asked,
        survivors=survivors,
        accuracy=scores[0] if scores else None,
        loss=scores[1] if scores and math.isfinite(scores[1]) else None,
        epsilon=coordinator.epsilon_after(booked),
        seconds=time.perf_counter() - started,
    )
    coordinator.folder.append("metrics.jsonl", asdict(result))
    coordinator.save(progress.next_round())
    if coordinator.on_round:
        coordinator.on_round(result)


def new_progress(config: RunConfig) -> Progress:
    """The beginning of a run: a fresh session."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Progress(session=secrets.token_hex(16), started=now, spare_rounds_left=config.run.spare_rounds)
