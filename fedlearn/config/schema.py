"""What a run says of a table: how its rows are read, which a holder pins, and which rows scores may be shown of."""

import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import BaseModel

from fedlearn.canonical import canonical_json, floats_as_text
from fedlearn.errors import ConfigError

__all__ = ["TABLES", "check_public_test", "columns_by_name", "schema_of", "schema_sha256"]

_C = TypeVar("_C")  # bounds of a column
TABLES: Final = ("csv", "parquet")
_OF_THE_ROWS: Final = {"label", "classes", "columns", "ignore"}
_SIGNS: Final = re.compile(r"[*?[]")  # of a pattern
_MOST_PATTERNS: Final = 64  # each is held against every name


class _Data(Protocol):
    """What `[data]` says of records that scores are shown of."""

    @property
    def dataset(self) -> str: ...
    @property
    def public_test(self) -> float | str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def public(self) -> bool | None: ...


def schema_of(data: BaseModel) -> Mapping[str, object]:
    """The keys of `[data]` that say how stored rows become records."""
    return data.model_dump(include=_OF_THE_ROWS, exclude_none=True)


def schema_sha256(data: BaseModel) -> str:
    """SHA-256, in hexadecimal, of the schema as canonical JSON with floats as text."""
    return hashlib.sha256(canonical_json(floats_as_text(schema_of(data)))).hexdigest()


def check_public_test(data: _Data, place: str, *, private: bool) -> None:
    """Refuse public tests of records that are not public.

    Raises:
        ConfigError: in a private run a share of a table is meant that is not declared public; or the file to train on.
    """
    given = data.public_test
    if data.dataset not in TABLES or not given:
        return
    if isinstance(given, str):
        if data.path is not None and Path(given).resolve() == Path(data.path).resolve():
            raise ConfigError(f"{place}: data.public_test is {given}, the file to train on; expected other records")
    elif private and not data.public:
        raise ConfigError(
            f"{place}: data.public_test is {given}, a share of the records that the run protects, and scores on it are "
            "not protected: name a file of public records, leave it out, or, if all records of data.path are public "
            "anyway, write data.public = true"
        )


def columns_by_name(columns: Mapping[str, _C], features: Sequence[str] | None, place: str) -> dict[str, _C]:
    """The bounds of each column by its own name, where sections may be named by a pattern such as "p*".

    A pattern stands for those of `features` that it matches and that have no section of their own. The names come from
    the run's file alone: no file of records is opened, so what is agreed on does not hang on any. `place` begins the
    sentence of an error.

    Guarantees:
        what comes out, given again with the same `features`, comes out once more.

    Raises:
        ConfigError: a pattern without `features`, or that matches none of them; two that match one; a name twice, or
            without bounds.
    """
    if features is None:
        if pattern := next((name for name in columns if "*" in name), None):
            raise ConfigError(
                f'{place}: data.columns has the pattern "{pattern}", and nothing says which columns there are; list '
                'the names that it is for, such as data.features = ["p1", "p2"]'
            )
        return dict(columns)
    listed = dict.fromkeys(features)
    if len(listed) != len(features):
        twice = Counter(features).most_common(1)[0][0]
        raise ConfigError(f'{place}: data.features names "{twice}" twice; expected each name once')
    patterns = [name for name in columns if name not in listed and _SIGNS.search(name)]
    if len(patterns) > _MOST_PATTERNS:
        raise ConfigError(f"{place}: data.columns has {len(patterns)} patterns; expected at most {_MOST_PATTERNS}")
    found = {name: column for name, column in columns.items() if name not in patterns}
    matched_by: dict[str, str] = {}
    for pattern in patterns:
        matches = re.compile(fnmatch.translate(pattern)).match
        matched = [name for name in listed if name not in columns and matches(name)]
        if not matched:
            raise ConfigError(
                f'{place}: the pattern "{pattern}" of data.columns matches none of data.features that has no section '
                "of its own; remove it, or list the names that it is for"
            )
        for name in matched:
            if name in matched_by:
                raise ConfigError(
                    f'{place}: the patterns "{matched_by[name]}" and "{pattern}" of data.columns both match "{name}"; '
                    "write a section for it, or narrower patterns"
                )
            matched_by[name] = pattern
            found[name] = columns[pattern]
    if bare := next((name for name in listed if name not in found), None):
        raise ConfigError(
            f'{place}: data.features names "{bare}", which no section of data.columns has bounds for; write one, or '
            "leave the name out"
        )
    return found
