"""The lifetime budget of one data set, and what events cost against it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.errors import ConfigError
from fedlearn.privacy.accounting import Event, epsilon_at_order, epsilon_of

__all__ = ["Budget", "event_of"]


@dataclass(frozen=True, slots=True)
class Budget:
    """(epsilon, delta) for one unit, checked at one order of Renyi divergence, which is fixed with it."""

    privacy_unit: str
    max_epsilon: float
    max_delta: float
    order: float

    def __str__(self) -> str:
        return f"epsilon {self.max_epsilon} at delta {self.max_delta} per {self.privacy_unit} (order {self.order:g})"

    def to_bytes(self) -> bytes:
        """Canonical JSON; floats as text, exactly."""
        numbers = {"max_delta": self.max_delta, "max_epsilon": self.max_epsilon, "order": self.order}
        return canonical_json(
            {name: repr(value) for name, value in numbers.items()} | {"privacy_unit": self.privacy_unit}
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> "Budget":
        """The budget in canonical bytes.

        Raises:
            ConfigError: they are not those of a budget.
        """
        try:
            values = read_json(body, what="a budget")
            numbers = (float(values[name]) for name in ("max_epsilon", "max_delta", "order"))
            budget = cls(str(values["privacy_unit"]), *numbers)
        except (ConfigError, ValueError, TypeError, KeyError):
            raise ConfigError(f"a budget is {body[:80]!r}; expected canonical JSON") from None
        if budget.to_bytes() != body:
            raise ConfigError(f"a budget is {body[:200]!r}; expected its canonical form {budget.to_bytes()!r}")
        return budget

    def spent_by(self, events: Mapping[bytes, int]) -> float:
        """Epsilon at the fixed order of so many releases of each event: what the budget bounds."""
        return _at_fixed_order(_history(events), self)

    def estimate_of(self, events: Mapping[bytes, int]) -> float:
        """Epsilon at the best order: what holds for one run fixed beforehand; over several runs, an estimate."""
        return _at_best_order(_history(events), self)


_History = tuple[tuple[bytes, int], ...]


def _history(events: Mapping[bytes, int]) -> _History:
    return tuple(sorted(Counter(events).items()))


@lru_cache(maxsize=4096)
def event_of(body: bytes) -> Event:
    """The event in canonical bytes; most rows of a ledger have the same.

    Raises:
        ConfigError: they are not those of an event.
    """
    return Event.from_bytes(body)


@lru_cache(maxsize=4096)
def _at_fixed_order(history: _History, budget: Budget) -> float:
    return epsilon_at_order(
        [(event_of(body), times) for body, times in history],
        delta=budget.max_delta,
        epsilon_ceiling=budget.max_epsilon,
        order=budget.order,
    )


@lru_cache(maxsize=4096)
def _at_best_order(history: _History, budget: Budget) -> float:
    events = [(event_of(body), times) for body, times in history]
    return epsilon_of(events, delta=budget.max_delta, epsilon_ceiling=budget.max_epsilon)
