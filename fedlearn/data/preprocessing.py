"""Raw table columns -> features, by public bounds alone: nothing is fitted on private records.

A range or a mean taken from the records would be a release that no ledger books, and would make one record's features
depend on the others'. The rules, each value by itself:

* a number in [low, high] becomes 2 * (x - low) / (high - low) - 1, in [-1, 1]; one outside is clipped to the bounds;
* a category becomes one 0/1 feature for each of `values`, in their order; a row with one not listed is unusable;
* a missing value (empty, NaN, null, or spelled as in `missing`) becomes `impute`; without `impute` its row is unusable.

Values are compared as text without surrounding blanks, and where no text is equal as numbers ("1.0" is "1") or truth
values ("TRUE" is "True"). As a number, true is 1 and false 0, and a date is its days since 1970-01-01.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import Column
from fedlearn.errors import ConfigError, DataError
from fedlearn.wording import did_you_mean

__all__ = [
    "Frame",
    "Prepared",
    "Spellings",
    "check_columns",
    "prepare",
    "preprocess_frame",
    "shown",
    "text_of",
    "toml_key",
]

_SHOWN_VALUES: Final = 12
_PLAIN_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,64}(\.[0-9]{0,64})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?", re.ASCII)
_SECONDS_OF_A_DAY: Final = 86400
_TRUTH: Final = {"true": 1.0, "false": 0.0}


class Frame(Protocol):
    """Columns by name: a pandas DataFrame, or a mapping from name to a list of values."""

    def __getitem__(self, name: str, /) -> Iterable[object]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self, /) -> Iterator[Any]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """Features (n, width) of n rows; `unusable` says of rows (0 is the first) why, and their features mean nothing.

    `clipped` counts for each column the values beyond its bounds.
    """

    features: NDArray[np.float32]
    unusable: Mapping[int, str]
    clipped: Mapping[str, int]


def preprocess_frame(frame: Frame, columns: Mapping[str, Column], *, place: str = "the table") -> NDArray[np.float32]:
    """Features (n, width), float32, finite, of the named columns of `frame`; its other columns are not read.

    Columns come in the order of their sorted names (a configuration that traveled is sorted), a number as one feature,
    a category as one for each value. `place` begins the sentence of an error.

    Guarantees: a row's features depend on that row and on `columns` alone; each lies in [-1, 1]; `frame` is unchanged.

    Raises ConfigError for a column without bounds, and DataError naming row (1 is the first) and column for a value
    that cannot be used.
    """
    prepared = prepare(frame, columns, place=place)
    for row in sorted(prepared.unusable):
        raise DataError(f"{place}, row {row + 1}, {prepared.unusable[row]}")
    return prepared.features


def prepare(frame: Frame, columns: Mapping[str, Column], *, place: str) -> Prepared:
    """`preprocess_frame` for rows that may be unusable: which are is said, and is no error.

    Guarantees:
        whether a row is usable, and its features, depend on that row and on `columns` alone.

    Raises:
        ConfigError: a column without bounds.
        DataError: `frame` lacks a column, or its columns are of several lengths.
    """
    check_columns(columns)
    blocks: list[NDArray[np.float32]] = []
    unusable: dict[int, str] = {}
    clipped: dict[str, int] = {}
    for name, column in sorted(columns.items()):
        if name not in frame:
            hint = did_you_mean(name, map(str, frame))
            asked = f"the section [data.columns.{toml_key(name)}] asks for it"
            raise DataError(f"{place} has no column {name!r}; {asked}{f'; {hint}' if hint else ''}")
        texts = [text_of(value) for value in frame[name]]
        if blocks and len(texts) != len(blocks[0]):
            raise DataError(f"{place}: column {name!r} has {len(texts)} rows; expected {len(blocks[0])}, as the others")
        if column.values is None:
            block, refused, clipped[name] = _scaled(texts, column)
        else:
            block, refused = _one_hot(texts, column, column.values)
        blocks.append(block)
        for row, why in refused.items():
            unusable.setdefault(row, f"column {name!r} {why}")
    return Prepared(np.concatenate(blocks, axis=1), unusable, clipped)


def check_columns(columns: Mapping[str, Column]) -> None:
    """Raise ConfigError unless there is a column and each has either public bounds or a public list of values."""
    if not columns:
        raise ConfigError(
            "data.columns is empty; write a section [data.columns.NAME] with low and high, or values, for each "
            "feature: bounds measured on private records would leak them"
        )
    for name, column in columns.items():
        if column.values is not None:
            _check_values(name, column, column.values)
        elif column.low is None or column.high is None:
            lacking = " and ".join(bound for bound in ("low", "high") if getattr(column, bound) is None)
            raise ConfigError(
                f"{_key(name)} has no {lacking}; write low and high, or values, as anybody may know them without "
                "seeing the records: bounds measured on private records would leak them"
            )
        else:
            _check_bounds(name, column, column.low, column.high)


def _key(name: str) -> str:
    return f"data.columns.{toml_key(name)}"


def _check_bounds(name: str, column: Column, low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"{_key(name)} has low = {low} and high = {high}; expected finite numbers, low below high")
    if high / 2 == low / 2:
        raise ConfigError(f"{_key(name)} has low = {low} and high = {high}; expected bounds that are further apart")
    impute = column.impute
    if impute is not None and (isinstance(impute, str) or not low <= impute <= high):
        raise ConfigError(f"{_key(name)}.impute is {impute!r}; expected a number within the bounds {low} to {high}")


def _check_values(name: str, column: Column, values: Sequence[str]) -> None:
    if column.low is not None or column.high is not None:
        raise ConfigError(
            f"{_key(name)} has both bounds and values; write low and high for a number, values for a category"
        )
    if not values or len({text_of(value) for value in values}) != len(values):
        raise ConfigError(f"{_key(name)}.values is {list(values)}; expected at least one value, and each one once")
    if column.impute is not None and text_of(column.impute) not in map(text_of, values):
        raise ConfigError(f"{_key(name)}.impute is {column.impute!r}; expected one of the values {list(values)}")


def _scaled(texts: Sequence[str], column: Column) -> tuple[NDArray[np.float32], dict[int, str], int]:
    """Numbers as one feature (n, 1) in [-1, 1], why rows are unusable, and how many values were clipped."""
    assert column.low is not None
    assert column.high is not None
    missing = {text_of(token) for token in column.missing}
    missing_numbers = {number for token in missing if (number := _number(token)) is not None}
    missing.add("")
    impute = None if column.impute is None else float(column.impute)
    unusable: dict[int, str] = {}
    numbers = np.empty((len(texts), 1), dtype=np.float64)
    for index, text in enumerate(texts):
        number = _number(text)
        if text in missing or (number is not None and (math.isnan(number) or number in missing_numbers)):
            number = impute
            if number is None:
                unusable[index] = _MISSING
        elif number is None or math.isinf(number):
            unusable[index] = (
                f"is {shown(text)}; expected a finite number (if it means that the value is not known, add it to "
                "`missing`)"
            )
        numbers[index] = column.low if index in unusable else number
    # Halves first: high - low may overflow where both bounds are huge, the halves cannot.
    low, high = column.low / 2, column.high / 2
    halves = numbers / 2
    clipped = int(np.count_nonzero((halves < low) | (halves > high)))
    scaled = 2 * ((np.minimum(np.maximum(halves, low), high) - low) / (high - low)) - 1
    return scaled.astype(np.float32), unusable, clipped


def _one_hot(texts: Sequence[str], column: Column, values: Sequence[str]) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Categories as 0/1 features (n, number of values), and why rows are unusable."""
    places = Spellings({text_of(value): index for index, value in enumerate(values)})
    missing = {"", *map(text_of, column.missing)}
    impute = None if column.impute is None else text_of(column.impute)
    unusable: dict[int, str] = {}
    features = np.zeros((len(texts), len(values)), dtype=np.float32)
    for index, text in enumerate(texts):
        known = impute if text in missing else text
        place = None if known is None else places.find(known)
        if place is not None:
            features[index, place] = 1
        elif known is None:
            unusable[index] = _MISSING
        else:
            unusable[index] = (
                f"is {shown(text)}; expected one of {places.listed} (if it means that the value is not known, add it "
                "to `missing`)"
            )
    return features, unusable


_MISSING: Final = "is missing; fill it, or set `impute` of this column to a public constant"


class Spellings:
    """Which of some listed texts a stored text is: the equal one, or the only one of the same number or truth."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places
        self._meant: dict[object, int | None] = {}
        for text, place in places.items():
            if (meaning := _meaning(text)) is not None:
                self._meant[meaning] = place if self._meant.get(meaning, place) == place else None
        more = ", ..." if len(places) > _SHOWN_VALUES else ""
        self.listed = ", ".join(map(repr, list(places)[:_SHOWN_VALUES])) + more

    def find(self, text: str) -> int | None:
        """The place of a text; None where it is not listed."""
        place = self._places.get(text)
        return self._meant.get(_meaning(text)) if place is None else place


def _meaning(text: str) -> object:
    folded = text.casefold()
    if folded in _TRUTH:
        return folded
    return Decimal(text) if _PLAIN_NUMBER.fullmatch(text) else None


def _number(text: str) -> float | None:
    """The number that `text` spells, NaN and infinities included; None if it spells none."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return _TRUTH.get(text.casefold(), _days(text))


def _days(text: str) -> float | None:
    """Days since 1970-01-01 of a date, or of a date with a time; without a zone it is UTC."""
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return since.total_seconds() / _SECONDS_OF_A_DAY


def toml_key(name: str) -> str:
    """A name as it is written in a TOML section: in quotes where it must be."""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII)
    return name if bare else json.dumps(name, ensure_ascii=False, allow_nan=False)


def text_of(value: object) -> str:
    """A raw value as the text that rules compare: stripped; "" if missing; whole floats without their ".0"."""
    if isinstance(value, str):
        return value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' two nulls, known without importing it
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def shown(text: str) -> str:
    """A raw value in quotes for a sentence to its holder, shortened where it is long."""
    return repr(text if len(text) <= 40 else text[:40] + "…")
