"""Changes of a holder's policy that a command makes: one value, every other byte stays."""

import re
from collections.abc import Mapping
from pathlib import Path

from fedlearn.errors import ConfigError
from fedlearn.toml import parse_toml

__all__ = ["with_value"]


def with_value(content: bytes, section: str, key: str, value: str, *, place: Path) -> bytes:
    """A policy file's bytes with another text for `key` of `section`; comments and order stay.

    A key that is not there becomes the first of its section.

    Raises:
        ConfigError: it is no TOML, or the section or the key does not stand on a line of its own.
    """
    try:
        expected = parse_toml(content, place=place)
        values = expected
        for name in section.split(".", 1):
            values = values[name]
        has_it = key in values
        values[key] = value
    except (ConfigError, KeyError, TypeError):
        raise ConfigError(f"{place}: expected a policy in TOML with a section [{section}]") from None
    text = content.decode("utf-8")
    changed = _replaced(text, key, value) if has_it else _inserted(text, section, key, value)
    for candidate in changed:
        if _read(candidate.encode(), place) == expected:
            return candidate.encode()
    raise ConfigError(f'{place}: write {key} = "..." on a line of its own in [{section}]')


def _replaced(text: str, key: str, value: str) -> list[str]:
    """The text with one line of that key changed, for each such line."""
    pattern = re.compile(rf"""^([ \t]*{key}[ \t]*=[ \t]*)(["'])[^"'\r\n]*\2""", re.MULTILINE)
    return [
        text[: found.start()] + f"{found[1]}{found[2]}{value}{found[2]}" + text[found.end() :]
        for found in pattern.finditer(text)
    ]


def _inserted(text: str, section: str, key: str, value: str) -> list[str]:
    """The text with a line below the header of the section, for each line that looks like one."""
    table, _, name = section.partition(".")
    spelled = rf"{re.escape(table)}\.[\"']?{re.escape(name)}[\"']?" if name else re.escape(table)
    pattern = re.compile(rf"^[ \t]*\[[ \t]*{spelled}[ \t]*\][^\r\n]*(\r?\n|$)", re.MULTILINE)
    added = f'{key} = "{value}"'
    return [
        text[: found.end()] + ("" if found[1] else "\n") + added + (found[1] or "\n") + text[found.end() :]
        for found in pattern.finditer(text)
    ]


def _read(content: bytes, place: Path) -> Mapping[str, object] | None:
    try:
        return parse_toml(content, place=place)
    except ConfigError:
        return None
