"""Changes of a holder's policy that a command makes: one value of `[holder]`, every other byte stays."""

import re
import tomllib
from pathlib import Path
from typing import Any

from fedlearn.errors import ConfigError

__all__ = ["with_holder_value"]


def with_holder_value(content: bytes, key: str, value: str, *, place: Path) -> bytes:
    """A policy file's bytes with another text for `key`; comments and order stay.

    Raises:
        ConfigError: it is no TOML, or the key does not stand on a line of its own in [holder].
    """
    pattern = re.compile(rf"""^([ \t]*{key}[ \t]*=[ \t]*)(["'])[^"'\r\n]*\2""", re.MULTILINE)
    try:
        text = content.decode("utf-8")
        expected: dict[str, Any] = tomllib.loads(text)
        expected["holder"][key] = value
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ConfigError(f"{place}: expected a policy in TOML with a section [holder]") from None
    changed = pattern.sub(lambda found: f"{found[1]}{found[2]}{value}{found[2]}", text)
    if tomllib.loads(changed) != expected:
        raise ConfigError(f'{place}: write {key} = "..." on a line of its own in [holder]')
    return changed.encode()
