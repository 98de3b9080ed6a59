"""csv and parquet files -> stored rows, each read by itself: whatever one row holds, it changes no other.

What a *stored row* is:

* csv: one line of the file below its header line, up to the line feed, unless it is empty. Each is decoded and parsed
  alone, so a quote that does not close ends with its line (and a line break inside quotes is not read: those lines are
  rows without the right fields). A line that is not UTF-8 is read as Windows-1252.
* parquet: one row. A value that Python cannot hold is a text that says so, in its own cell alone.

How a file is written (separator, decimal comma, byte order mark, gzip) is found in its first bytes and its header line,
never in its rows.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedlearn.errors import ConfigError, DataError

__all__ = ["Table", "read_csv", "read_parquet", "read_table"]

_SEPARATORS: Final = ",;\t"
_GZIP: Final = b"\x1f\x8b"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_QUOTED: Final = re.compile('"[^"]*"')
_DECIMAL_COMMA: Final = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Table:
    """A file's stored rows: raw columns, all of `size` values; `place` names the file in a sentence.

    `broken` says of rows (0 is the first) whose cells are not known why, and `raw` what is stored of them; their cells
    in `columns` mean nothing.
    """

    place: str
    columns: Mapping[str, Sequence[object]]
    size: int
    broken: Mapping[int, str] = field(default_factory=dict)
    raw: Mapping[int, str] = field(default_factory=dict)


def read_table(kind: str, path: Path) -> Table:
    """Read a file of one of the kinds "csv" and "parquet"; raises as `read_csv` and `read_parquet`."""
    return _READERS[kind](path)


def read_csv(path: Path) -> Table:
    """Read a csv file: a header line, then rows; commas, semicolons or tabs, whatever the header has most.

    Where it is not commas, a number may have a decimal comma. UTF-8 or Windows-1252, or UTF-16 with a mark; may be
    compressed with gzip. Fields are quoted by `"`. An empty line is no row.

    Raises DataError for a file that is missing, unreadable, empty or without a header of unique names; never for a row.
    """
    place = _existing(path)
    lines = _lines(_content(path, place))
    if not lines:
        raise DataError(f"{place} is empty; expected a header line with the names of the columns")
    separator = max(_SEPARATORS, key=_QUOTED.sub("", lines[0]).count)
    try:
        names = [name.strip() for name in _fields(lines[0], separator)]
    except csv.Error as error:
        raise DataError(f"{place} is not a csv file: {error} in its header; expected quotes that close") from error
    header = _unique(names, place)
    rows: list[list[str]] = []
    broken: dict[int, str] = {}
    blank = [""] * len(header)
    for number, line in enumerate(lines[1:]):
        try:
            fields = _fields(line, separator)
            if len(fields) != len(header):
                broken[number] = f"has {len(fields)} fields; expected {len(header)}, as in the header"
        except csv.Error as error:
            broken[number] = f"cannot be read: {error}; expected quotes that close on their line"
        rows.append(blank if number in broken else fields)
    if separator != ",":
        rows = [[_with_point(cell) if "," in cell else cell for cell in row] for row in rows]
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    raw = {number: lines[number + 1] for number in broken}
    return Table(place, dict(zip(header, columns, strict=True)), len(rows), broken, raw)


def _content(path: Path, place: str) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{place} is not a gzip file that can be read: {error}") from error
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror}") from error


def _lines(content: bytes) -> list[str]:
    """Lines that are not empty, each decoded by itself."""
    if content[:2] in _UTF_16:
        lines = content.decode("utf-16", "replace").split("\n")
    else:
        lines = [_decoded(line) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return [kept for line in lines if (kept := line.removesuffix("\r"))]


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _fields(line: str, separator: str) -> list[str]:
    """Raises csv.Error for a line that is not one row."""
    if '"' not in line:
        return line.split(separator)
    rows = list(csv.reader([line], delimiter=separator, strict=True))
    if len(rows) != 1:
        raise csv.Error("a line break inside the line")
    return rows[0]


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell.strip()) else cell


def read_parquet(path: Path) -> Table:
    """Read one parquet file, or a folder of parts `*.parquet` with the same columns, in the order of their names.

    Raises DataError for what is missing or broken, ConfigError where pyarrow is missing; never for a row.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("reading parquet needs pyarrow; install it with: pip install 'fedlearn[data]'") from error
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise DataError(f"{path} is a folder without a file *.parquet; check data.path and data.public_test")
    columns: dict[str, list[object]] = {}
    size = 0
    for part in parts:
        place = _existing(part)
        try:
            # ParquetFile, not read_table: that one makes columns of folders that are named like key=value.
            table = parquet.ParquetFile(part).read(use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{place} is not a parquet file that can be read: {str(error).splitlines()[0]}") from error
        names = _unique(table.column_names, place)
        if part is parts[0]:
            columns = {name: [] for name in names}
        if set(names) != set(columns):
            raise DataError(f"{place} has other columns than {parts[0]}; expected parts of one table")
        for name in names:
            columns[name] += _values(table.column(name))
        size += table.num_rows
    return Table(str(path), columns, size)


def _values(column: Any) -> list[object]:
    """The values of a pyarrow column; a float of few bits becomes the number that its shortest text spells."""
    try:
        values: list[object] = column.to_pylist()
    except Exception:  # one value is enough; each then by itself
        values = [_value(scalar) for scalar in column]
    few_bits = {"float": np.float32, "halffloat": np.float16}.get(str(column.type))
    if few_bits is None:
        return values
    return [float(str(few_bits(value))) if isinstance(value, float) else value for value in values]


def _value(scalar: Any) -> object:
    unread = f"<{scalar.type} that cannot be read"
    try:
        return scalar.as_py()
    except Exception:  # a moment beyond the year 9999, text that is none
        return f"{unread}: {scalar.value}>" if hasattr(scalar, "value") else f"{unread}>"


def _existing(path: Path) -> str:
    """The name of a file for sentences; raises DataError where there is no such file."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; check data.path and data.public_test")
    return str(path)


def _unique(names: Sequence[str], place: str) -> Sequence[str]:
    for name, times in Counter(names).items():
        if not name:
            raise DataError(
                f"{place} has a column without a name, number {list(names).index(name) + 1}; name it or remove it"
            )
        if times > 1:
            raise DataError(f"{place} has two columns {name!r}; expected each name once")
    return names


_READERS: Mapping[str, Callable[[Path], Table]] = {"csv": read_csv, "parquet": read_parquet}
