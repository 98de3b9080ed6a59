"""Raw table columns -> features, by public bounds alone: nothing is fitted on private records.

A range or a mean taken from the records would be a release that no ledger books, and would make one record's features
depend on the others'. The rules, each value by itself:

* a number in [low, high] becomes 2 * (x - low) / (high - low) - 1, in [-1, 1]; one outside is clipped to the bounds;
* a category becomes one 0/1 feature for each of `values`, in their order; one that is not listed is an error;
* a missing value (empty, NaN, null, or spelled as in `missing`) becomes `impute`; without `impute` it is an error.

Values are compared as text without surrounding blanks; 1.0 is "1", true is "True".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import Column
from fedlearn.errors import ConfigError, DataError

__all__ = ["Frame", "check_columns", "preprocess_frame", "shown", "text_of"]


class Frame(Protocol):
    """Columns by name: a pandas DataFrame, or a mapping from name to a list of values."""

    def __getitem__(self, name: str, /) -> Iterable[object]: ...
    def __contains__(self, name: object, /) -> bool: ...


def preprocess_frame(frame: Frame, columns: Mapping[str, Column], *, place: str = "the table") -> NDArray[np.float32]:
    """Features (n, width), float32, finite, of the named columns of `frame`; its other columns are not read.

    Columns come in the order of their sorted names (a configuration that traveled is sorted), a number as one feature,
    a category as one for each value. `place` begins the sentence of an error.

    Guarantees: a row's features depend on that row and on `columns` alone; each lies in [-1, 1]; `frame` is unchanged.

    Raises ConfigError for a column without bounds, and DataError naming row (1 is the first) and column for a value
    that cannot be used.
    """
    check_columns(columns)
    blocks: list[NDArray[np.float32]] = []
    for name, column in sorted(columns.items()):
        if name not in frame:
            raise DataError(f"{place} has no column {name!r}; the section [data.columns.{name}] asks for it")
        texts = [text_of(value) for value in frame[name]]
        if blocks and len(texts) != len(blocks[0]):
            raise DataError(f"{place}: column {name!r} has {len(texts)} rows; expected {len(blocks[0])}, as the others")
        prepare = _scaled if column.values is None else _one_hot
        blocks.append(prepare(texts, column, f"{place}, column {name!r}"))
    return np.concatenate(blocks, axis=1)


def check_columns(columns: Mapping[str, Column]) -> None:
    """Raise ConfigError unless there is a column and each has either public bounds or a public list of values."""
    if not columns:
        raise ConfigError(
            "data.columns is empty; write a section [data.columns.NAME] with low and high, or values, for each "
            "feature: bounds measured on private records would leak them"
        )
    for name, column in columns.items():
        key = f"data.columns.{name}"
        if column.values is not None:
            _check_values(key, column, column.values)
        elif column.low is None or column.high is None:
            lacking = " and ".join(bound for bound in ("low", "high") if getattr(column, bound) is None)
            raise ConfigError(
                f"{key} has no {lacking}; write low and high, or values, as anybody may know them without seeing the "
                "records: bounds measured on private records would leak them"
            )
        else:
            _check_bounds(key, column, column.low, column.high)


def _check_bounds(key: str, column: Column, low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"{key} has low = {low} and high = {high}; expected finite numbers, low below high")
    impute = column.impute
    if impute is not None and (isinstance(impute, str) or not low <= impute <= high):
        raise ConfigError(f"{key}.impute is {impute!r}; expected a number within the bounds {low} to {high}")


def _check_values(key: str, column: Column, values: Sequence[str]) -> None:
    if column.low is not None or column.high is not None:
        raise ConfigError(f"{key} has both bounds and values; write low and high for a number, values for a category")
    if not values or len({text_of(value) for value in values}) != len(values):
        raise ConfigError(f"{key}.values is {list(values)}; expected at least one value, and each one once")
    if column.impute is not None and text_of(column.impute) not in map(text_of, values):
        raise ConfigError(f"{key}.impute is {column.impute!r}; expected one of the values {list(values)}")


def _scaled(texts: Sequence[str], column: Column, place: str) -> NDArray[np.float32]:
    """Numbers as one feature (n, 1) in [-1, 1]."""
    assert column.low is not None
    assert column.high is not None
    missing = {text_of(token) for token in column.missing}
    missing_numbers = {number for token in missing if (number := _number(token)) is not None}
    numbers = np.empty((len(texts), 1), dtype=np.float64)
    for index, text in enumerate(texts):
        number = _number(text)
        if text == "" or text in missing or (number is not None and (math.isnan(number) or number in missing_numbers)):
            number = float(_imputed(column, row=index + 1, place=place))
        if number is None or math.isinf(number):
            raise DataError(
                f"{place}, row {index + 1} is {shown(text)}; expected a finite number "
                "(if it means that the value is not known, add it to `missing`)"
            )
        numbers[index] = number
    # Halves first: high - low may overflow where both bounds are huge, the halves cannot.
    low, high = column.low / 2, column.high / 2
    scaled = 2 * ((np.clip(numbers / 2, low, high) - low) / (high - low)) - 1
    return scaled.astype(np.float32)


def _one_hot(texts: Sequence[str], column: Column, place: str) -> NDArray[np.float32]:
    """Categories as 0/1 features (n, number of values)."""
    assert column.values is not None
    places = {text_of(value): index for index, value in enumerate(column.values)}
    missing = {"", *map(text_of, column.missing)}
    features = np.zeros((len(texts), len(places)), dtype=np.float32)
    for index, text in enumerate(texts):
        if text in missing:
            text = text_of(_imputed(column, row=index + 1, place=place))
        if text not in places:
            raise DataError(
                f"{place}, row {index + 1} is {shown(text)}; expected one of {', '.join(map(repr, places))} "
                "(if it means that the value is not known, add it to `missing`)"
            )
        features[index, places[text]] = 1
    return features


def _imputed(column: Column, *, row: int, place: str) -> float | str:
    if column.impute is None:
        raise DataError(f"{place}, row {row} is missing; fill it, or set `impute` of this column to a public constant")
    return column.impute


def _number(text: str) -> float | None:
    """The number that `text` spells, NaN and infinities included; None if it spells none."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


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
