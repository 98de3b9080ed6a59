"""The one way to read a TOML file that a person may have written, with or without the byte order mark of some editors.

What is wrong with it is a sentence, whatever its bytes are, in bounded time: `bounded.py` says why.
"""

import math
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from fedlearn.bounded import read_whole
from fedlearn.errors import ConfigError

__all__ = ["parse_toml", "read_toml"]

_MOST_BYTES: Final = 1 << 22
_MOST_DEPTH: Final = 32
_MOST_DOTS: Final = 64  # tomllib copies a dotted key at each of its dots
# Strings, also as parts of keys, and comments; one without an end goes on to where tomllib gives up.
_QUOTED: Final = re.compile(
    rb'''"""(?:\\.|[^\\])*?(?:"""+|\Z)|"(?:\\.|[^"\\\n])*"?|'''
    rb"""'''.*?(?:'''+|\Z)|'[^'\n]*'?|\#[^\n]*""",
    re.DOTALL,
)
_NOT_IN_A_KEY: Final = re.compile(rb"[][{}=,\n]")


def parse_toml(content: bytes, *, place: str | Path) -> dict[str, Any]:
    """The values in the bytes of a TOML file; `place` begins the sentence when something is wrong.

    Raises:
        ConfigError: it is none, or none that can be held: not UTF-8, nested too deeply, a number of too many digits or
            that is not finite, more than 4 MiB.
    """
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{place} has {len(content)} bytes; expected at most {_MOST_BYTES}")
    if any(part.count(b".") > _MOST_DOTS for part in _NOT_IN_A_KEY.split(_QUOTED.sub(b"", content))):
        raise ConfigError(f"{place} has a key of more than {_MOST_DOTS} parts with a dot between them")
    try:
        values = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{place}: expected a TOML file; it cannot be read as one: {error}") from None
    except RecursionError:
        raise ConfigError(f"{place}: expected a TOML file; it cannot be read as one: nested too deeply") from None
    _check_values(values, place)
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        ConfigError: as `parse_toml`.
        OSError: the file cannot be read.
    """
    return parse_toml(read_whole(path, most=_MOST_BYTES), place=path)


def _check_values(values: Any, what: str | Path) -> None:
    waiting = [("", values, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise ConfigError(f"{what} is nested more than {_MOST_DEPTH} deep")
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(place, item, depth + 1) for item in value]
        elif isinstance(value, int) and value.bit_length() > 64:
            raise ConfigError(f"{what}: {place} has {value.bit_length()} bits; expected an integer of at most 64")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{what}: {place} is {value}; expected a finite number")
