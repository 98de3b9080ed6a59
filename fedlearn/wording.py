"""How a wrong key or value is told to the user: one sentence with the place, what was expected, what came."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel  # the command line answers a mistyped option without it

__all__ = ["did_you_mean", "nearest", "one_line", "sentence_of"]

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "dict_type": "a table of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "a number above {}"),
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than": ("lt", "a number below {}"),
    "less_than_equal": ("le", "a number of at most {}"),
}


_LONGEST_NAME = 100
_MOST_NAMES = 1000


def did_you_mean(name: str, known: Iterable[str], *, within: str = "") -> str:
    """`did you mean age?`, and how the two differ where that is hard to see; "" where no known name is like it.

    `within` stands before the name that is meant: its section.
    """
    hint = nearest(name, known)
    if hint is None:
        return ""
    if name == hint or _folded(name) != _folded(hint):
        return f"did you mean {within}{hint}?"
    if _composed(name) == _composed(hint):
        how = "how accents are joined to their letters (Unicode)"
    elif name.casefold() == hint.casefold():
        how = "upper and lower case"
    else:
        how = "upper and lower case, and how accents are joined to their letters (Unicode)"
    return f"did you mean {within}{hint}, which differs only in {how}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, compared as a whole and word by word, or None.

    Case, and whether an accent is a sign of its own, count for nothing. Word by word, because "epsilom" is far from
    "target_epsilon" as a whole and near to one of its words. Among more than 1,000 names, and for one of more than 100
    signs, nothing else is like it: the comparison takes as long as their number, and as the square of its length.
    """
    names, folded = list(known), _folded(name)
    if equal := [candidate for candidate in names if _folded(candidate) == folded]:
        return name if name in equal else equal[0]
    if len(name) > _LONGEST_NAME or len(names) > _MOST_NAMES:
        return None
    scored = [(_likeness(folded, _folded(candidate)), candidate) for candidate in names]
    best = max(scored, default=(0.0, ""))
    return best[1] if best[0] >= 0.65 else None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """One form for all spellings that differ in case or composition; folding may take a composed letter apart."""
    return _composed(_composed(name).casefold())


def one_line(sentence: str) -> str:
    """`sentence` on one line, with whatever a terminal would obey written out: keys and values are the user's text."""
    text = " ".join(sentence.splitlines())
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _likeness(name: str, candidate: str) -> float:
    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    words, others = _words(name), _words(candidate)
    by_word = [max(ratio(word, other) for other in others) for word in words] or [0.0]
    # A whole name that is near wins over a single word that is equally near.
    return max(ratio(name, candidate), 0.99 * sum(by_word) / len(by_word))


def _words(name: str) -> list[str]:
    return name.replace("-", "_").split("_")


def sentence_of(error: Any, model: "type[BaseModel]", *, of: str = "a run") -> str:
    """One sentence for one error of pydantic: place, what was expected, what came, the nearest valid name.

    `of` says what kind of file `model` is.
    """
    path = [_shortened(str(part)) for part in error["loc"]]
    place = ".".join(part for part in path if not _is_alternative(part))
    kind, came = error["type"], _shown(error.get("input"))
    if kind == "extra_forbidden":
        return _unknown_key(path, model, of)
    if kind == "missing" and path[-1].isdigit():
        return f"{'.'.join(path[:-1])} is too short with {path[-1]} entries; expected more"
    if kind == "too_long":
        return f"{place} has {len(error['input'])} entries; expected at most {error['ctx']['max_length']}"
    if kind == "string_too_long":
        most = error["ctx"]["max_length"]
        return f"{place} is {came} of {len(error['input'])} characters; expected at most {most}"
    if kind == "missing":
        what = "section" if len(path) == 1 else "key"
        return f"the {what} {place} is missing; add it"
    if kind in _BOUNDS:
        bound, text = _BOUNDS[kind]
        limit = format(error["ctx"][bound], "g")
        return f"{place} is {came}; expected {text.format(limit)}"
    if kind == "literal_error":
        return f"{place} is {came}; expected one of {error['ctx']['expected']}"
    if kind == "value_error":
        return f"{place} is {came}; {error['ctx']['error']}"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{place} is {came}; {error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{place} is {came}; expected {expected}"


def _is_alternative(part: str) -> bool:
    """A union's error names the alternative it tried last; only the keys are the user's."""
    return "[" in part or part.startswith("constrained-") or part in ("int", "float", "str", "bool")


def _unknown_key(path: list[str], model: "type[BaseModel]", of: str) -> str:
    *sections, key = path
    place = ".".join(path)
    known = _fields_at(model, sections)
    if meant := did_you_mean(key, known, within="".join(f"{section}." for section in sections)):
        return f"{place} is not a key of {of}; {meant}"
    for name, field in model.model_fields.items():
        if meant := did_you_mean(key, _keys_of(field.annotation) or (), within=f"{name}."):
            return f"{place} is not a key of {of}; {meant}"
    what = "key" if sections else "section"
    return f"{place} is not a {what} of {of}; expected one of {', '.join(sorted(known))}"


def _fields_at(model: "type[BaseModel]", sections: list[str]) -> list[str]:
    at: Any = model
    for section in sections:
        fields = getattr(at, "model_fields", {})
        # Below a section there are only tables whose names the user chose: a run's columns, a policy's data sets.
        at = fields[section].annotation if section in fields else (get_args(at) or (None,))[-1]
    return _keys_of(at) or []


def _keys_of(annotation: Any) -> list[str] | None:
    """The keys of a section; None for the type of a value."""
    fields = getattr(annotation, "model_fields", None)
    return list(fields) if fields is not None else None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else repr(list(value) if isinstance(value, tuple) else value)
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
