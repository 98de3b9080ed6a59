"""What a run says of a table: how its rows are read, which a holder pins, and which rows scores may be shown of."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel

from fedlearn.canonical import canonical_json, floats_as_text
from fedlearn.errors import ConfigError

__all__ = ["TABLES", "check_public_test", "schema_of", "schema_sha256"]

TABLES: Final = ("csv", "parquet")
_OF_THE_ROWS: Final = {"label", "classes", "columns", "ignore"}


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
