"""csv and parquet: a user's own table, with a label, public bounds for each feature, and maybe a client column.

A row that cannot be used (a label or a value that is not listed, a missing one, text for a number, the wrong number of
fields) is absent, and that is decided by that row alone: in a run whose schema a coordinator chose, one record can then
change no more than itself. An error is about the file as a whole or the options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import DataOptions, Dataset, Loaded
from fedlearn.data.preprocessing import Spellings, check_columns, prepare, shown, text_of, toml_key
from fedlearn.data.readers import Table, read_csv, read_parquet
from fedlearn.data.stored import fingerprint_of, held_out
from fedlearn.errors import ConfigError, DataError
from fedlearn.task.classification import Classification
from fedlearn.wording import did_you_mean

__all__ = ["Judged", "empty_records", "judge_rows", "load_csv", "load_parquet", "table_records"]

_COLUMNS_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Judged:
    """The records of a table, in the order of their rows, and what its holder is told of the rows that give none.

    `usable` (rows,) says which stored rows are records, `unusable` of the others why: row (1 is the first below the
    header) -> the end of a sentence. `clipped` counts for each column the values beyond its bounds.
    """

    records: Dataset
    usable: NDArray[np.bool_]
    unusable: Mapping[int, str]
    clipped: Mapping[str, int]


def load_csv(options: DataOptions) -> Loaded:
    """A csv file as `read_csv` reads it; see `judge_rows` for what is expected of it."""
    return _load(options, read_csv)


def load_parquet(options: DataOptions) -> Loaded:
    """A parquet file, or a folder of parts; see `judge_rows` for what is expected of it. Needs pyarrow."""
    return _load(options, read_parquet)


def empty_records(options: DataOptions) -> Dataset:
    """No records at all, in the shape and with the classes that any file read by these options has; none is opened.

    Raises ConfigError for options that cannot work.
    """
    label, _ = _checked_label(options)
    check_columns(options.columns)
    return table_records(Table("no table", dict.fromkeys((*options.columns, label), ()), 0), options)


def _load(options: DataOptions, read: Callable[[Path], Table]) -> Loaded:
    if options.path is None:
        raise ConfigError(f"data.path is missing; the data set {options.dataset!r} needs the file to read")
    _checked_label(options)
    check_columns(options.columns)
    table = read(Path(options.path))
    train = judge_rows(table, options)
    if not isinstance(options.public_test, str):
        return _with_share(table, train, options.public_test or 0)
    if Path(options.public_test).resolve() == Path(options.path).resolve():
        raise ConfigError(f"data.public_test is {options.public_test}, the file to train on; expected other records")
    other = read(Path(options.public_test))
    if table.size and fingerprint_of(other, b"") == fingerprint_of(table, b""):
        raise ConfigError(
            f"data.public_test is {options.public_test}, which has the rows of {options.path} and no others"
        )
    # The public file need not say where its records come from.
    columns = {name: column for name, column in other.columns.items() if name != options.client_column}
    test = judge_rows(replace(other, columns=columns), replace(options, path=options.public_test, client_column=None))
    return Loaded(train.records, test.records, {**_named(table, train), **_named(other, test)}, train.clipped)


def _with_share(table: Table, judged: Judged, share: float) -> Loaded:
    """Each stored row is in the test or not by itself alone."""
    if not 0 <= share < 1:
        raise ConfigError(f"data.public_test is {share!r}; expected a share of the records from 0 up to, not with, 1")
    unusable = _named(table, judged)
    if share == 0:
        return Loaded(judged.records, None, unusable, judged.clipped)
    out = held_out(table, share)[judged.usable]
    train, test = (judged.records.take(np.flatnonzero(chosen)) for chosen in (~out, out))
    return Loaded(train, test, unusable, judged.clipped)


def _named(table: Table, judged: Judged) -> dict[str, str]:
    return {f"{table.place}, row {row}": why for row, why in judged.unusable.items()}


def judge_rows(table: Table, options: DataOptions) -> Judged:
    """`table_records`, with every column of the file accounted for, and with what is unusable."""
    judged = _judged(table, options)  # first: a column that is there under a name like it is told of as such
    known = {*options.columns, options.label, options.client_column}
    for name in table.columns:
        if name not in known and not any(fnmatchcase(name, pattern) for pattern in options.ignore):
            raise DataError(
                f"{table.place} has the column {name!r}, which has no bounds; write [data.columns.{toml_key(name)}] "
                "with low and high, or values, as anybody may know them (bounds measured on private records would leak "
                "them), or name it in data.ignore"
            )
    return judged


def table_records(table: Table, options: DataOptions) -> Dataset:
    """The records of a table: features by `preprocess_frame`, labels by `options.classes`, clients by sorted name.

    Class i holds the rows whose label is one of `options.classes[i]`, compared as values are. A table without rows is
    valid, and so is one without usable rows.

    Guarantees:
        a row more, usable or not, anywhere in the table, changes no other row's record.

    Raises ConfigError for options that cannot work (no label, no classes, a raw label in two classes, a column with two
    tasks) and DataError for a table without the columns that they name.
    """
    return _judged(table, options).records


def _judged(table: Table, options: DataOptions) -> Judged:
    label, classes = _checked_label(options)
    class_of = Spellings({text_of(raw): index for index, raws in enumerate(classes) for raw in raws})
    found = [class_of.find(text) for text in _texts(table, label, "data.label")]
    prepared = prepare(table.columns, options.columns, place=table.place)
    unusable = dict(table.broken)
    for row, why in prepared.unusable.items():
        unusable.setdefault(row, why)
    for row, place in enumerate(found):
        if place is None and row not in unusable:
            text = text_of(table.columns[label][row])
            came = f"is {shown(text)}" if text else "is missing"
            unusable[row] = f"column {label!r} {came}; expected a label that data.classes lists: {class_of.listed}"
    names = tuple("/".join(raws) for raws in classes)
    client_names: tuple[str, ...] = ()
    clients = None
    if options.client_column is not None:
        clients, client_names = _clients(table, options.client_column, unusable)
    usable = np.ones(table.size, dtype=np.bool_)
    usable[list(unusable)] = False
    labels = np.array([place or 0 for place in found], dtype=np.int64)[usable]
    features = prepared.features[usable]
    records = Dataset(
        features, labels, Classification(names), None if clients is None else clients[usable], client_names
    )
    return Judged(records, usable, {row + 1: unusable[row] for row in sorted(unusable)}, prepared.clipped)


def _checked_label(options: DataOptions) -> tuple[str, tuple[tuple[str, ...], ...]]:
    if options.label is None:
        raise ConfigError("data.label is missing; write the name of the column that holds the class")
    for key, name in (("label", options.label), ("client_column", options.client_column)):
        if name is not None and name in options.columns:
            raise ConfigError(
                f"data.{key} is {name!r}, which is also a feature; remove [data.columns.{toml_key(name)}]"
            )
    if options.label == options.client_column:
        raise ConfigError(f"data.label and data.client_column are both {options.label!r}; expected two columns")
    if options.classes is None:
        raise ConfigError(
            'data.classes is missing; write the raw labels of each class, such as classes = [["0"], ["1", "2"]]: '
            "a list taken from private records would show which labels occur"
        )
    raws = [text_of(raw) for members in options.classes for raw in members]
    if len(options.classes) < 2 or not all(options.classes) or len(set(raws)) != len(raws) or "" in raws:
        raise ConfigError(
            f"data.classes is {[list(members) for members in options.classes]}; expected at least two classes, each a "
            'list of raw labels, and each label in one class, such as [["0"], ["1", "2"]]'
        )
    return options.label, options.classes


def _texts(table: Table, name: str, key: str) -> list[str]:
    if name not in table.columns:
        meant = (
            did_you_mean(name, table.columns) or f"it has {', '.join(map(shown, list(table.columns)[:_COLUMNS_NAMED]))}"
        )
        raise DataError(f"{table.place} has no column {name!r}, which {key} names; {meant}")
    return [text_of(value) for value in table.columns[name]]


def _clients(table: Table, name: str, unusable: dict[int, str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The client of each row, and all their names; a row without one is noted as unusable."""
    texts = _texts(table, name, "data.client_column")
    for row, text in enumerate(texts):
        if not text:
            unusable.setdefault(row, f"column {name!r} is missing; expected the client of the record")
    names = tuple(sorted({text for row, text in enumerate(texts) if text and row not in table.broken}))
    places = {client: index for index, client in enumerate(names)}
    return np.array([places.get(text, 0) for text in texts], dtype=np.int64), names
