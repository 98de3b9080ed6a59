"""The one way to read a TOML file that a person may have written, with or without the byte order mark of some editors.

What is wrong with it is a sentence, whatever its bytes are.
"""

import tomllib
from pathlib import Path
from typing import Any

from fedlearn.errors import ConfigError

__all__ = ["parse_toml", "read_toml"]


def parse_toml(content: bytes, *, place: str | Path) -> dict[str, Any]:
    """The values in the bytes of a TOML file; `place` begins the sentence when something is wrong.

    Raises:
        ConfigError: it is none, or none that can be held: not UTF-8, nested too deeply, a number of too many digits.
    """
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{place}: expected a TOML file; it cannot be read as one: {error}") from None
    except RecursionError:
        raise ConfigError(f"{place}: expected a TOML file; it cannot be read as one: nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        ConfigError: as `parse_toml`.
        OSError: the file cannot be read.
    """
    return parse_toml(path.read_bytes(), place=path)
