"""The loop of a run: cohort -> agreement -> contributions -> server optimizer -> evaluation -> checkpoint."""

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

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
from fedlearn.coordinator.choosing import choose_cohort
from fedlearn.coordinator.run_data import Ask, Evaluate, OnRound, RoundResult, ServerOptimizer
from fedlearn.coordinator.server_noise_booking import ServerNoiseBooking
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import RunFailedError
from fedlearn.model.layout import Layout, write_model
from fedlearn.policy.roster import Roster
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import Lanes
from fedlearn.privacy.release import participations
from fedlearn.round.aggregation import finish_round, noised_sum, refuse_unless_finite
from fedlearn.round.context_fields import context_fields_of
from fedlearn.run.checkpoint import Progress, RunFolder
from fedlearn.secagg.transcript import Position

__all__ = ["Coordinator", "new_progress", "releases_booked"]

_WHERE_REASONS_ARE: Final = "why a data holder refuses stands in its own log alone (log/agent.jsonl beside its policy)"
# So often in a row an attempt may end before it asks for vectors: clients that refuse once refuse always.
_ATTEMPTS_IN_VAIN: Final = 3


@dataclass(slots=True)
class Coordinator:
    """The coordinator of one run, and its steps: `run` takes them until the last round is done."""

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

    def run(self, *, resumed: bool) -> Progress:
        """Run until `rounds` succeeded; `resumed` after a crash or an interruption.

        Every attempt that asks for a vector is written down before it asks, so what a crash interrupts counts as spent.

        Raises:
            RunFailedError: the spare rounds are used up, or too few clients accept the run.
        """
        if resumed:
            self._settle_interrupted_attempt()
        self.save(self.progress)
        in_vain = 0
        while self.progress.round < self.config.run.rounds:
            started = time.perf_counter()
            cohort = self._choose_cohort()
            try:
                summed = self._attempt(cohort)
            except AttemptFailedError as error:
                in_vain = 0 if self.progress.asking else in_vain + 1
                self._give_up_attempt(asked=len(cohort), in_vain=in_vain, error=error)
                continue
            in_vain = 0
            noised = self._add_noise(summed, asked=len(cohort))
            self._book(asked=len(cohort), survivors=summed.survivors, transcript=_hex(summed.transcript))
            self._finish(noised, asked=len(cohort), survivors=summed.survivors, started=started)
        return self.progress

    def save(self, progress: Progress, noised: Lanes | None = None) -> None:
        """Make `progress` durable, and a noised sum with it; what follows may rely on it."""
        self.progress = progress
        self.folder.save_checkpoint(progress, self.weights, self.optimizer.state(), noised)

    def _choose_cohort(self) -> list[int]:
        """The members asked next. Whom the operator took out is never asked again; the roster stays as accepted."""
        asked = choose_cohort(self.config, self.population_size, attempts_asked=self.progress.attempts_asked)
        if self.roster is None:
            return asked
        members, revoked = self.roster.members, self.folder.revoked()
        return [member for member in asked if members[member].client_id not in revoked]

    def _attempt(self, cohort: Sequence[int]) -> Summed:
        """One attempt of the current round.

        Raises:
            AttemptFailedError: too few clients, or what they sent does not add up.
        """
        config, progress = self.config, self.progress

        self.answered.clear()

        def ask(stage: str, bodies: Mapping[int, bytes], receive: Receive) -> None:
            def take(member: int, reply: bytes) -> bool:
                self.answered.add(member)
                return receive(member, reply)

            self.ask(stage, progress, bodies, take)

        def before_vectors() -> None:
            self.save(replace(progress, asking=True, attempts_asked=progress.attempts_asked + 1))
            if self.server_noise:
                self.server_noise.make(progress)

        attempt = Attempt(
            cohort=cohort,
            config=config.to_bytes(),
            model=write_model(self.weights, self.layout),
            dimension=self.plan.dimension,
            min_survivors=_least_survivors(config),
            ask=ask,
            before_vectors=before_vectors,
            sums=self.sums_at(progress) if self.sums_at else None,
        )
        if self.roster is None:
            return plain_attempt(attempt)
        fields = context_fields_of(config, self.plan, self.layout, self.roster.sha256)
        position = Position(bytes.fromhex(progress.session), progress.round + 1, progress.attempt)
        return masked_attempt(attempt, fields=fields, roster=self.roster, position=position)

    def _add_noise(self, summed: Summed, *, asked: int) -> Lanes:
        """The sum with the server's noise where the mode has it: then it is durable, and booked, before it is used."""
        noised = noised_sum(
            [summed.lanes],
            mechanism=MECHANISMS[self.config.privacy.mode],
            plan=self.plan,
            entropy=stream_entropy(os.urandom),
        )
        if self.server_noise:
            progress = replace(
                self.progress, asked=asked, survivors=summed.survivors, transcript=_hex(summed.transcript)
            )
            self.save(progress, noised)
            self.server_noise.keep()
        return noised

    def _book(self, *, asked: int, survivors: int | None = None, transcript: str | None = None) -> None:
        """One line of events.jsonl: what was released, as executed. Without survivors the attempt was aborted."""
        event, progress = self.plan.event, self.progress
        line: dict[str, Any] = {
            "round": progress.round + 1,
            "attempt": progress.attempt,
            "asked": asked,
            "survivors": survivors or 0,
            "aborted": survivors is None,
            "transcript": transcript,
            "event": event.as_dict() if event else None,
        }
        self.folder.append("events.jsonl", line)

    def _give_up_attempt(self, *, asked: int, in_vain: int, error: AttemptFailedError) -> None:
        """Go on with the next attempt. One that asked for vectors is booked as spent and uses a spare round.

        Raises:
            RunFailedError: no spare round is left, or attempt after attempt ends before vectors are asked for.
        """
        progress = self.progress
        if progress.asking:
            if self.server_noise:
                self.server_noise.withdraw()
            self._book(asked=asked)
            self._use_spare_round(error)
            return
        are_there = len(self.answered) >= _least_survivors(self.config)
        if are_there:
            self.save(progress.next_attempt())
        # Else nothing but its configuration was sent: the same bytes are sent again, for attempts are numbered, and a
        # holder answers few of a round.
        if in_vain > (_ATTEMPTS_IN_VAIN if are_there else self.patience):
            raise RunFailedError(
                f"round {progress.round + 1}: {error}; {in_vain} attempts ended so, before a vector was asked for; "
                f"{_WHERE_REASONS_ARE}"
            )

    def _use_spare_round(self, error: AttemptFailedError | None) -> None:
        progress = self.progress
        if progress.spare_rounds_left == 0:
            self.save(progress.next_attempt())
            why = f"{error}; {_WHERE_REASONS_ARE}" if error else "the run was interrupted in the middle of an attempt"
            raise RunFailedError(
                f"round {progress.round + 1}: {why}; no spare round is left, and what was sent counts as spent"
            )
        self.save(replace(progress.next_attempt(), spare_rounds_left=progress.spare_rounds_left - 1))

    def _settle_interrupted_attempt(self) -> None:
        """After a crash: an attempt that asked for vectors counts as spent and uses a spare round.

        If the crash came after the server drew its noise, the round is finished with that very sum.
        """
        progress, folder = self.progress, self.folder
        interrupted = (progress.round + 1, progress.attempt)
        folder.keep_lines("metrics.jsonl", lambda line: line["round"] <= progress.round)
        # Every event counts; only a line that the crash left unfinished goes, before the next one is added to it.
        folder.keep_lines("events.jsonl", lambda line: line["round"] <= progress.round + 1)
        if not progress.asking:
            self.save(progress.next_attempt())
            return
        booked = [line for line in folder.lines("events.jsonl") if (line["round"], line["attempt"]) == interrupted]
        noised = folder.noised_sum()
        if noised is not None and progress.asked is not None and progress.survivors is not None:
            if not booked:
                self._book(asked=progress.asked, survivors=progress.survivors, transcript=progress.transcript)
            started = time.perf_counter()
            self._finish(noised, asked=progress.asked, survivors=progress.survivors, started=started)
            return
        # A sum that was booked and went with the process moved no model: its attempt is one that was aborted.
        folder.keep_lines("events.jsonl", lambda line: (line["round"], line["attempt"]) != interrupted)
        self._book(asked=booked[0]["asked"] if booked else self.config.secure_aggregation.planned_cohort)
        self._use_spare_round(None)

    def _finish(self, noised: Lanes, *, asked: int, survivors: int, started: float) -> None:
        """Move the model by a noised sum, score it, make the next round durable."""
        progress = self.progress
        number = progress.round + 1
        update = finish_round(
            noised,
            mechanism=MECHANISMS[self.config.privacy.mode],
            plan=self.plan,
            learning_rate=self.config.training.learning_rate,
        )
        self.weights = self.optimizer.step(number, self.weights, update)
        refuse_unless_finite(self.weights, number)
        scores = self.evaluate(self.weights)
        booked = releases_booked(self.config, self.population_size, progress.attempts_asked)
        result = RoundResult(
            round=number,
            attempt=progress.attempt,
            asked=asked,
            survivors=survivors,
            accuracy=scores[0] if scores else None,
            loss=scores[1] if scores and math.isfinite(scores[1]) else None,
            epsilon=self.epsilon_after(booked),
            seconds=time.perf_counter() - started,
        )
        self.folder.append("metrics.jsonl", asdict(result))
        self.save(progress.next_round())
        if self.on_round:
            self.on_round(result)


def _least_survivors(config: RunConfig) -> int:
    """Fewer end an attempt. A secret cohort may be empty: that it is small must not show."""
    return 0 if config.secure_aggregation.cohorts == "poisson" else config.secure_aggregation.min_survivors


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


def new_progress(config: RunConfig) -> Progress:
    """The beginning of a run: a fresh session."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Progress(session=secrets.token_hex(16), started=now, spare_rounds_left=config.run.spare_rounds)
