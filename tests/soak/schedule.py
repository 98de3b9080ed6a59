"""The faults of a soak: which, where and when, all drawn from one seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

STAGES = ("advertise", "share", "masked", "consistency", "unmask")

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One fault: what happens to which member (0..3), at which stage, and a number that varies it."""

    kind: str
    member: int
    stage: str
    number: int

    def among(self, choices: Sequence[T]) -> T:
        """The choice that this fault makes."""
        return choices[self.number % len(choices)]

    def __str__(self) -> str:
        return f"{self.kind} (member {self.member}, stage {self.stage}, {self.number})"


def draw(kinds: Sequence[tuple[str, int, Sequence[str]]], seed: int, *, part: str) -> list[Fault]:
    """So many faults of each kind, each at one of its stages, in any order; the same seed gives the same list."""
    chance = random.Random(f"{part} {seed}")
    faults = [
        Fault(kind, chance.randrange(4), chance.choice(stages), chance.randrange(1 << 30))
        for kind, times, stages in kinds
        for _ in range(times)
    ]
    chance.shuffle(faults)
    return faults


@dataclass
class Tally:
    """What was injected and seen. A fault counts when its effect was observed, and only then."""

    observed: list[Fault] = field(default_factory=list)
    unobserved: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        """The kinds that were observed."""
        return {fault.kind for fault in self.observed}

    def add(self, other: "Tally") -> None:
        """Take in another half's."""
        self.observed += other.observed
        self.unobserved += other.unobserved
        self.violations += other.violations

    @property
    def summary(self) -> str:
        """The one line."""
        return f"faults={len(self.observed)} kinds={len(self.kinds)} violations={len(self.violations)}"
