"""What a value of a run's configuration may be: its type and range.

A holder is sent a configuration before it knows who asks, so that each list, text and number is bounded before anything
is made of it: generously for a table, and yet soon read.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

__all__ = [
    "MOST_COLUMNS",
    "MOST_KEYS",
    "MOST_OPTIONS",
    "MOST_VALUES",
    "Classes",
    "Compile",
    "Count",
    "GradientBound",
    "Name",
    "Option",
    "Positive",
    "Probability",
    "StageSeconds",
    "Text",
    "Texts",
    "as_tuples",
]

MOST_COLUMNS: Final = 2**15
MOST_VALUES: Final = 2**16
MOST_OPTIONS: Final = 64
MOST_KEYS: Final = 100  # of a section, known ones or not

# Short by construction: a denominator of 10^(10^9) would keep whoever reads it busy for ever.
_PROBABILITY = re.compile(r"[0-9]{1,10}/[0-9]{1,10}|[0-9]{1,10}(\.[0-9]{1,9})?")


def _reduced_probability(value: object) -> str:
    """A probability as a reduced fraction in text: "1", "1/3", "0.25" -> "1/4"."""
    text = format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)
    if not isinstance(value, str | int | float) or not _PROBABILITY.fullmatch(text):
        raise ValueError('expected text such as "1", "1/3" or "0.25", with at most 9 decimals')
    numerator, _, denominator = text.partition("/")
    if denominator and not int(denominator):
        raise ValueError("expected a fraction whose denominator is not 0")
    fraction = Fraction(numerator) / int(denominator or "1")
    if not 0 < fraction <= 1 or fraction.denominator >= 2**32:
        raise ValueError("expected a probability above 0 and at most 1, as a/b with both below 2^32")
    return str(fraction)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Squares of entries below 4e-23 are zero in float32: beside a bound as small, a long gradient would seem to be short.
GradientBound = Annotated[float, Field(ge=1e-12, allow_inf_nan=False)]
Probability = Annotated[str, BeforeValidator(_reduced_probability)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
StageSeconds = Annotated[int, Field(ge=1, lt=2**16)]  # a field of the context, as `secagg.transcript` packs it
Compile = Literal[True, False, "auto"]
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=1000)]  # of a table: names of columns, values, classes


def as_tuples(value: Any) -> Any:
    """Lists as tuples, at every depth: TOML and JSON have lists, a frozen section tuples."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _cut_after_a_wrong_one(value: Any) -> Any:
    """A list with one wrong entry as it stands: an error for each of 500,000 would take 500 MB."""
    if not isinstance(value, tuple):
        return value
    kind = tuple if value and isinstance(value[0], tuple) else str
    wrong = next((at for at, item in enumerate(value) if not isinstance(item, kind)), len(value))
    return value[: wrong + 1]


Texts = Annotated[tuple[Text, ...], Field(max_length=MOST_VALUES), BeforeValidator(_cut_after_a_wrong_one)]
Classes = Annotated[tuple[Texts, ...], Field(max_length=MOST_VALUES), BeforeValidator(_cut_after_a_wrong_one)]


def _bounded(value: Any) -> Any:
    """An option of a model reaches its builder, which may make a layer of every number: checked before."""
    if isinstance(value, list | tuple):
        if len(value) > MOST_OPTIONS:
            raise ValueError(f"expected a list of at most {MOST_OPTIONS} entries, not {len(value)}")
        return tuple(_bounded(item) for item in value)
    if isinstance(value, int) and not -(2**31) < value < 2**31:
        raise ValueError("expected integers between -2^31 and 2^31")
    if isinstance(value, str) and len(value) > 200:
        raise ValueError(f"expected a text of at most 200 characters, not {len(value)}")
    return value


Option = Annotated[bool | int | float | str | tuple[int, ...], BeforeValidator(_bounded)]
