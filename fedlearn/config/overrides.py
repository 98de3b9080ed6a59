"""Overrides of a run's keys, as they are typed: "section.key=value"."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from fedlearn.errors import ConfigError

__all__ = ["override_items", "set_value"]

# Names joined by dots, as TOML has them: in quotes, or bare; bare ones may have blanks and any letters here.
_NAME = re.compile(r"""[ \t]*("(?:[^"\\]|\\.)*"|'[^']*'|[^\s.="'][^.="']*)[ \t]*([.=]|$)""")


def override_items(overrides: Sequence[str] | Mapping[str, object]) -> list[tuple[tuple[str, ...], object]]:
    """The names of each key, and its value.

    Raises:
        ConfigError: a text is no override.
    """
    if isinstance(overrides, Mapping):
        return [(_names_and_rest(key)[0], value) for key, value in overrides.items()]
    items: list[tuple[tuple[str, ...], object]] = []
    for text in overrides:
        names, value = _names_and_rest(text)
        if value is None or len(names) < 2:
            raise ConfigError(f"--set {text}: expected section.key=value, such as privacy.target_epsilon=3")
        items.append((names, _toml_value(value.strip())))
    return items


def _names_and_rest(text: str) -> tuple[tuple[str, ...], str | None]:
    """The names at the front of "a.b=value" and what follows the sign "="; None where there is no such sign."""
    names: list[str] = []
    position = 0
    while found := _NAME.match(text, position):
        name = found[1].strip()
        names.append(str(_toml_value(name)) if name[0] in "\"'" else name)
        position = found.end()
        if found[2] != ".":
            return tuple(names), text[position:] if found[2] else None
    return (), None


def _toml_value(text: str) -> object:
    """A TOML literal where it is one ("3", "true", "[1, 2]"), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def set_value(values: dict[str, Any], keys: Sequence[str], value: object) -> None:
    """Set one key in nested sections, which are made where they are missing.

    Raises:
        ConfigError: a section of it is a value.
    """
    *sections, last = keys
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {'.'.join(keys)}: {section} is a value, not a section; expected section.key=value"
            )
    values[last] = value
