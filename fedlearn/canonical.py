"""Canonical JSON: one value, one sequence of bytes. Floats of a configuration stand in it as text.

`repr` of a float is exact, and the same everywhere.

JSON has no NaN and no infinity. What is stored refuses them; what is told to a person or a program has null instead.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["canonical_json", "floats_as_text", "floats_from_text", "floats_to_text", "told_json"]


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII. A reader decodes, encodes again and compares.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def told_json(value: Any) -> str:
    """One line of JSON by the standard, of what is told: a number that is not finite is null in it."""
    return json.dumps(_finite_or_none(value), allow_nan=False)


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    return [_finite_or_none(item) for item in value] if isinstance(value, tuple | list) else value


def floats_to_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration with every float replaced by its `repr`; tuples become lists."""
    told = {name: floats_as_text(section) for name, section in values.items()}
    # Values of `model.options` have no fixed type, so there a float says that it is one.
    for key, value in values.get("model", {}).get("options", {}).items():
        if isinstance(value, float):
            told["model"]["options"][key] = {"float": repr(value)}
    return told


def floats_as_text(value: Any) -> Any:
    """`value` with every float in it replaced by its `repr`, and tuples by lists."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: floats_as_text(item) for key, item in value.items()}
    return [floats_as_text(item) for item in value] if isinstance(value, tuple | list) else value


def floats_from_text(values: dict[str, Any], model: "type[BaseModel]") -> dict[str, Any]:
    """Undo `floats_to_text`: which keys hold floats is known from the types of the sections of `model`.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError: `floats_to_text` does not give `values`.
    """
    read: dict[str, Any] = {}
    for name, section in values.items():
        fields = getattr(model.model_fields[name].annotation, "model_fields", {})
        read[name] = {key: _value_from_text(key, item, fields) for key, item in section.items()}
    return read


def _value_from_text(key: str, item: Any, fields: Mapping[str, Any]) -> Any:
    if key == "options":
        return {option: float(v["float"]) if isinstance(v, dict) else v for option, v in item.items()}
    if key == "strategy_options":
        return {option: float(v) for option, v in item.items()}
    if key == "columns":
        return {name: _column_from_text(column) for name, column in item.items()}
    is_float = key in fields and "float" in str(fields[key].annotation)
    return float(item) if is_float and isinstance(item, str) else item


def _column_from_text(column: dict[str, Any]) -> dict[str, Any]:
    """A category's `impute` is text, a number's is a number."""
    numbers = ("low", "high") if "values" in column else ("low", "high", "impute")
    return {key: float(item) if key in numbers else item for key, item in column.items()}
