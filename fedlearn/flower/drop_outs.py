"""Simulated faults: a share of each cohort fails at a stage drawn at random, before its request or after its reply."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedlearn.stages import STAGES_OF_ATTEMPT

__all__ = ["DropOuts", "Fault"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Who does not get a stage's request, and whose reply to it is lost."""

    unasked: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()


class DropOuts:
    """`runtime.dropout`: exactly floor(dropout * planned_cohort) clients of each cohort fail once, and stay away."""

    def __init__(self, dropout: float, planned_cohort: int) -> None:
        self._count = int(dropout * planned_cohort + 1e-9)
        self._random = secrets.SystemRandom()
        self._fails_at: Mapping[int, tuple[str, bool]] = {}

    def at(self, stage: str, members: Collection[int]) -> Fault:
        """What goes wrong in this stage. The first stage of an attempt draws who fails, and where."""
        if stage == STAGES_OF_ATTEMPT[0]:
            chosen = self._random.sample(sorted(members), min(self._count, len(members)))
            self._fails_at = {m: (self._random.choice(STAGES_OF_ATTEMPT), self._random.random() < 0.5) for m in chosen}
        here = STAGES_OF_ATTEMPT.index(stage)
        gone = {m for m, (at, _) in self._fails_at.items() if STAGES_OF_ATTEMPT.index(at) < here}
        failing = {m: before for m, (at, before) in self._fails_at.items() if at == stage}
        before = {m for m, before_request in failing.items() if before_request}
        return Fault(frozenset(gone | before), frozenset(set(failing) - before))
