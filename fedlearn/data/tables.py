"""csv and parquet: a user's own table, with a label, public bounds for each feature, and maybe a client column."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import DataOptions, Dataset, Loaded, hold_out
from fedlearn.data.preprocessing import check_columns, preprocess_frame, shown, text_of
from fedlearn.errors import ConfigError, DataError

__all__ = [
    "Table",
    "empty_records",
    "load_csv",
    "load_parquet",
    "read_csv",
    "read_parquet",
    "read_table",
    "refused_rows",
    "table_records",
]


@dataclass(frozen=True, slots=True)
class Table:
    """A file's raw columns, all of one length; `place` names the file in a sentence."""

    place: str
    columns: dict[str, list[object]]


def load_csv(options: DataOptions) -> Loaded:
    """A comma-separated file, UTF-8, with a header line; see `table_records` for what is expected of it."""
    return _load(options, read_csv)


def load_parquet(options: DataOptions) -> Loaded:
    """One parquet file; see `table_records` for what is expected of it. Needs pyarrow (the extra `data`)."""
    return _load(options, read_parquet)


def empty_records(options: DataOptions) -> Dataset:
    """No records at all, in the shape and with the classes that any file read by these options has; none is opened.

    Raises ConfigError for options that cannot work.
    """
    label, _ = _checked_label(options)
    check_columns(options.columns)
    return table_records(Table("no table", {name: [] for name in (*options.columns, label)}), options)


def _load(options: DataOptions, read: Callable[[Path], Table]) -> Loaded:
    if options.path is None:
        raise ConfigError(f"data.path is missing; the data set {options.dataset!r} needs the file to read")
    _checked_label(options)
    check_columns(options.columns)
    records = _features_and_labels(read(Path(options.path)), options)
    if not isinstance(options.public_test, str):
        return hold_out(records, options.public_test or 0)
    # The public file need not say where its records come from.
    test_options = replace(options, path=options.public_test, client_column=None)
    table = read(Path(options.public_test))
    if options.client_column is not None:
        table.columns.pop(options.client_column, None)
    return Loaded(records, _features_and_labels(table, test_options))


def _features_and_labels(table: Table, options: DataOptions) -> Dataset:
    """`table_records`, with every column of the file accounted for."""
    known = {*options.columns, options.label, options.client_column}
    for name in table.columns:
        if name not in known:
            raise DataError(
                f"{table.place} has the column {name!r}, which has no bounds; write [data.columns.{name}] with low and "
                "high, or values, as anybody may know them (bounds measured on private records would leak them), or "
                "leave the column out of the file"
            )
    return table_records(table, options)


def table_records(table: Table, options: DataOptions) -> Dataset:
    """The records of a table: features by `preprocess_frame`, labels by `options.classes`, clients by sorted name.

    Class i holds the rows whose label is one of `options.classes[i]`, compared as text. A table without rows is valid.

    Raises ConfigError for options that cannot work (no label, no classes, a raw label in two classes, a column with two
    tasks) and DataError naming row (1 is the first below the header) and column for a value that cannot be used.
    """
    label, classes = _checked_label(options)
    class_of = {text_of(raw): index for index, raws in enumerate(classes) for raw in raws}
    labels = np.array(_labels(table, label, class_of), dtype=np.int64)
    features = preprocess_frame(table.columns, options.columns, place=table.place)
    names = tuple("/".join(raws) for raws in classes)
    if options.client_column is None:
        return Dataset(features, labels, names)
    clients, client_names = _clients(table, options.client_column)
    return Dataset(features, labels, names, clients, client_names)


def _checked_label(options: DataOptions) -> tuple[str, tuple[tuple[str, ...], ...]]:
    if options.label is None:
        raise ConfigError("data.label is missing; write the name of the column that holds the class")
    for key, name in (("label", options.label), ("client_column", options.client_column)):
        if name is not None and name in options.columns:
            raise ConfigError(f"data.{key} is {name!r}, which is also a feature; remove [data.columns.{name}]")
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


def _column(table: Table, name: str, key: str) -> list[object]:
    if name not in table.columns:
        raise DataError(f"{table.place} has no column {name!r}, which {key} names; it has {', '.join(table.columns)}")
    return table.columns[name]


def _labels(table: Table, label: str, class_of: dict[str, int]) -> list[int]:
    texts = [text_of(value) for value in _column(table, label, "data.label")]
    for row, text in enumerate(texts, start=1):
        if text not in class_of:
            came = f"is {shown(text)}" if text else "is missing"
            raise DataError(
                f"{table.place}, column {label!r}, row {row} {came}; expected a label that data.classes lists: "
                f"{', '.join(map(repr, class_of))}"
            )
    return [class_of[text] for text in texts]


def _clients(table: Table, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    texts = [text_of(value) for value in _column(table, name, "data.client_column")]
    if "" in texts:
        raise DataError(
            f"{table.place}, column {name!r}, row {texts.index('') + 1} is missing; expected the client of the record"
        )
    names = tuple(sorted(set(texts)))
    places = {client: index for index, client in enumerate(names)}
    return np.array([places[text] for text in texts], dtype=np.int64), names


def refused_rows(options: DataOptions, *, most: int) -> list[int]:
    """Rows of the file of `options` with a value that cannot be used, at most so many, ascending; 1 is the first.

    None where the file itself is what cannot be used: no row would then be right.

    Raises ConfigError for options that cannot work, and DataError for a file that cannot be read.
    """
    assert options.path is not None
    table = read_table(options.dataset, Path(options.path))
    table_records(replace(table, columns={name: [] for name in table.columns}), options)
    found: list[int] = []
    spans = [(0, len(next(iter(table.columns.values()))))]
    while spans and len(found) < most:
        first, end = spans.pop()
        part = replace(table, columns={name: values[first:end] for name, values in table.columns.items()})
        try:
            table_records(part, options)
        except DataError:
            middle = (first + end) // 2
            if end - first == 1:
                found.append(end)
            else:
                spans += [(middle, end), (first, middle)]
    return found


def read_table(kind: str, path: Path) -> Table:
    """Read a file of one of the kinds "csv" and "parquet"; raises as `read_csv` and `read_parquet`."""
    return _READERS[kind](path)


def read_csv(path: Path) -> Table:
    """Read a csv file with Python's own reader: commas, UTF-8 with or without mark, one header line, quoted by `"`.

    Raises DataError for what is missing, unreadable, not text, empty or ragged; blank lines at the end do not count.
    """
    place = _existing(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text (byte {error.start}); save it as a csv file in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{place} is not a csv file: {error}; expected commas, and quotes that close") from error
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{place} is empty; expected a header line with the names of the columns")
    if len(lines[0]) == 1 and any(mark in lines[0][0] for mark in ";\t"):
        raise DataError(f"{place} is separated by semicolons or tabs; save it with commas")
    header = _unique([name.strip() for name in lines[0]], place)
    for row, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(f"{place}, row {row} has {len(line)} fields; expected {len(header)}, as in the header")
    return Table(place, {name: [line[index] for line in lines[1:]] for index, name in enumerate(header)})


def read_parquet(path: Path) -> Table:
    """Read one parquet file; raises DataError for what is missing or broken, ConfigError where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("reading parquet needs pyarrow; install it with: pip install 'fedlearn[data]'") from error
    place = _existing(path)
    try:
        # ParquetFile, not read_table: that one makes columns of folders that are named like key=value.
        table = parquet.ParquetFile(path).read(use_threads=False)
        names = _unique(table.column_names, place)
        return Table(place, {name: table.column(name).to_pylist() for name in names})
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{place} is not a parquet file that can be read: {str(error).splitlines()[0]}") from error


def _existing(path: Path) -> str:
    """The name of a file for sentences; raises DataError where there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; check data.path and data.public_test")
    return str(path)


def _unique(names: Sequence[str], place: str) -> Sequence[str]:
    for name in names:
        if not name:
            raise DataError(
                f"{place} has a column without a name, number {names.index(name) + 1}; name it or remove it"
            )
        if names.count(name) > 1:
            raise DataError(f"{place} has two columns {name!r}; expected each name once")
    return names


_READERS: Mapping[str, Callable[[Path], Table]] = {"csv": read_csv, "parquet": read_parquet}
