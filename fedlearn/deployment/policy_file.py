"""Changes of a holder's policy that a command makes: one value, every other byte stays."""

import re
from pathlib import Path

from fedlearn.errors import ConfigError
from fedlearn.toml import parse_toml

__all__ = ["with_value"]


def with_value(content: bytes, section: str, key: str, value: str, *, place: Path) -> bytes:
    """A policy file's bytes with another text for `key` of `section`; comments and order stay.

    Raises:
        ConfigError: it is no TOML, or the key does not stand on a line of its own in that section.
    """
    pattern = re.compile(rf"""^([ \t]*{key}[ \t]*=[ \t]*)(["'])[^"'\r\n]*\2""", re.MULTILINE)
    try:
        expected = parse_toml(content, place=place)
        expected[section][key] = value
    except (ConfigError, KeyError, TypeError):
        raise ConfigError(f"{place}: expected a policy in TOML with a section [{section}]") from None
    text = content.decode("utf-8")
    changed = pattern.sub(lambda found: f"{found[1]}{found[2]}{value}{found[2]}", text).encode()
    if parse_toml(changed, place=place) != expected:
        raise ConfigError(f'{place}: write {key} = "..." on a line of its own in [{section}]')
    return changed
