"""Guarantees as lines on a terminal: unit, relation, delta and against whom, each time."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fedlearn.config.run_config import RunConfig
    from fedlearn.privacy.guarantee import Guarantee

__all__ = ["guarantee_lines", "notes_on", "percent"]


# What the guarantee compares, by dp-accounting's names of it.
_CHANGED: Final = {
    "ADD_OR_REMOVE_ONE": "added or removed",
    "REPLACE_ONE": "replaced by another",
    "REPLACE_SPECIAL": "left out",
}


def percent(share: float) -> str:
    """A share as a percentage with one decimal, rounded down."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


def guarantee_lines(guarantees: Sequence["Guarantee"], *, masking: bool) -> Iterator[str]:
    """What a run guarantees, a line each; NOT PRIVATE where it guarantees nothing."""
    if not guarantees:
        yield "NOT PRIVATE: this run adds no noise and guarantees nothing."
    for guarantee in guarantees:
        weak = " (weak: above 10)" if guarantee.weak else ""
        yield (
            f"epsilon {_up(guarantee.epsilon)} at delta {guarantee.delta:g} for one {guarantee.privacy_unit}"
            f"{weak} {_CHANGED[guarantee.neighboring_relation]}, against {'; '.join(guarantee.holds_against)}."
        )
        if guarantee.epsilon_if_masking_fails is not None:
            weak = " (weak: above 10)" if guarantee.epsilon_if_masking_fails > 10 else ""
            seen = (
                "If masks fail, to who sees a single vector"
                if masking
                else "The server, for masking is false and it sees each vector"
            )
            yield f"{seen}: epsilon {_up(guarantee.epsilon_if_masking_fails)}{weak}."


def notes_on(config: "RunConfig") -> list[str]:
    """What a user stated in vain: a sentence, or none."""
    keys = config.without_effect
    if not keys:
        return []
    have = "has" if len(keys) == 1 else "have"
    return [f'{", ".join(keys)} {have} no effect in mode "{config.privacy.mode}"']


def _up(epsilon: float) -> str:
    from fedlearn.privacy.guarantee import rounded_up

    return f"{rounded_up(epsilon, 4):.4f}"
