"""The one form of a certificate: which keys it has, how numbers stand in it, and what its signature is over.

Canonical JSON without floats: a bound is a decimal rounded up, so that whoever reads it never reads too little.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.crypto.signatures import SigningKey, verify
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.privacy.guarantee import rounded_up

__all__ = [
    "INFINITE",
    "TYPE",
    "MalformedError",
    "decimal_up",
    "delta_text",
    "encode",
    "is_signed",
    "number_of",
    "parse",
]

TYPE: Final = "fedlearn/v1/certificate"
INFINITE: Final = "infinite"

_PLACES: Final = 6
_LONGEST_TEXT: Final = 1 << 20  # the configuration of a table of many columns
_ABOVE_INTEGERS: Final = 1 << 63
_PURPOSE: Final = "certificate"


class MalformedError(FedlearnError):
    """The bytes are meant to be a certificate, and are not what any run writes."""


def decimal_up(value: float) -> str:
    """A bound with 6 decimals, rounded up: 2.8849321 -> "2.884933"."""
    shown = rounded_up(value, _PLACES)
    return f"{Decimal(repr(shown)):.{_PLACES}f}" if shown != float("inf") else INFINITE


def delta_text(delta: Decimal | float) -> str:
    """A probability with all its digits: 1e-05 -> "0.00001"."""
    return f"{delta if isinstance(delta, Decimal) else Decimal(repr(delta)):f}"


def number_of(text: str) -> float:
    """The number that a decimal stands for."""
    return float("inf") if text == INFINITE else float(text)


def encode(content: Mapping[str, Any], key: SigningKey) -> bytes:
    """The file: `content` with the signature of `key`, which is over all the rest.

    Raises:
        MalformedError: `content` is not that of a certificate.
    """
    signed = {**content, "coordinator": {"key": key.public.hex()}}
    signature = key.sign(_PURPOSE, canonical_json(signed)).hex()
    whole = {**signed, "coordinator": {**signed["coordinator"], "signature": signature}}
    _check(whole, _CERTIFICATE, "the certificate")
    return canonical_json(whole)


def parse(body: bytes) -> dict[str, Any]:
    """The content of a certificate in its one form; its claims are not checked.

    Raises:
        ConfigError: this is something else than a certificate.
        MalformedError: it was one before it was changed.
    """
    try:
        content = read_json(body, what="the certificate")
    except ConfigError as error:
        if TYPE.encode() in body:
            raise MalformedError(str(error)) from None
        content = None
    claims = isinstance(content, dict) and {"type", "coordinator"} <= set(content)
    if not claims and TYPE.encode() not in body:
        raise ConfigError(f'expected a certificate, canonical JSON of type "{TYPE}"')
    if canonical_json(content) != body:
        raise MalformedError("the bytes are not canonical JSON: something was changed, or added")
    _check(content, _CERTIFICATE, "the certificate")
    if content["type"] != TYPE:
        raise MalformedError(f'the type is "{content["type"]}"; expected "{TYPE}"')
    _check_printable({**content, "config": ""})  # a configuration's texts are escaped: it is canonical JSON itself
    return dict(content)


def is_signed(content: Mapping[str, Any]) -> bool:
    """Whether the signature in a certificate is that of the key in it, over all the rest."""
    coordinator = content["coordinator"]
    signed = {**content, "coordinator": {"key": coordinator["key"]}}
    key, signature = bytes.fromhex(coordinator["key"]), bytes.fromhex(coordinator["signature"])
    return verify(key, signature, purpose=_PURPOSE, message=canonical_json(signed))


def _check_printable(content: Any) -> None:
    """A text that moves a cursor or changes colors could say something else than it says.

    Raises:
        MalformedError: a sign that does not print, or a float.
    """
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, float):
            raise MalformedError(f"a number is {value!r}; expected decimals as text")
        elif isinstance(value, str) and not value.isprintable():
            raise MalformedError(f"a text has signs that do not print: {value[:60]!r}")


@dataclass(frozen=True, slots=True)
class _Matching:
    """Text of one form."""

    pattern: str
    what: str


@dataclass(frozen=True, slots=True)
class _Maybe:
    """Such a value, or null."""

    shape: Any


def _hex(size: int) -> _Matching:
    return _Matching(rf"[0-9a-f]{{{2 * size}}}", f"{2 * size} lower-case hexadecimal digits")


_BOUND = _Matching(rf"(0|[1-9][0-9]{{0,30}})\.[0-9]{{{_PLACES}}}|{INFINITE}", f"a decimal with {_PLACES} places")
# Any finite float: the loss of a model with weights of 1e38.
_LOSS = _Matching(rf"(0|[1-9][0-9]{{0,308}})\.[0-9]{{{_PLACES}}}", f"a decimal with {_PLACES} places")
_DELTA = _Matching(r"0\.[0-9]{0,340}[1-9]", "a probability as a decimal")
_HASH, _KEY, _ID, _SIGNATURE = _hex(32), _hex(32), _hex(16), _hex(64)
_TIME = _Matching(r"|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}([+-][0-9:]{5}|Z)?", "a time as 2026-12-01T09:00:00+00:00")
_ANYTHING = object()

_CERTIFICATE: Final[Mapping[str, Any]] = {
    "type": str,
    "kind": _Matching("simulation|deployment", "simulation or deployment"),
    "run": {"session": _ID, "started": _TIME, "ended": _TIME, "purpose": _Maybe(str)},
    "subject": {
        "model_hash": _HASH,
        "file_sha256": _HASH,
        "tensors": [{"name": str, "shape": [int]}],
    },
    "config": str,
    "config_hash": _HASH,
    "population_size": int,
    "noise": {"by": str, "drawn": str, "std": int, "sensitivity": int, "shares": int},
    "guarantees": [
        {
            "privacy_unit": str,
            "neighboring_relation": str,
            "holds_against": [str],
            "mechanism": str,
            "accountant": str,
            "assumptions": [{"id": str, "text": str, "checked_by": str}],
            "releases": int,
            "delta": _DELTA,
            "epsilon": _BOUND,
            "epsilon_planned": _BOUND,
            "epsilon_estimate": _Maybe(_BOUND),
            "epsilon_if_masking_fails": _Maybe(_BOUND),
            "mu": _Maybe(_BOUND),
            "profile": [{"delta": _DELTA, "epsilon": _BOUND}],
        }
    ],
    "events": [
        {
            "round": int,
            "attempt": int,
            "asked": _Maybe(int),
            "survived": _Maybe(int),
            "aborted": bool,
            "event": _Maybe(
                {
                    "count": int,
                    "eta": str,
                    "mechanism": str,
                    "noise_multiplier": str,
                    "sampling_probability": str,
                }
            ),
        }
    ],
    "ledger": {
        "head": _Maybe(_HASH),
        "entries": _Maybe(int),
        "attestations": [
            {
                "client_id": _ID,
                "dataset_tag": _ID,
                "config_hash": _HASH,
                "ledger_head": _HASH,
                "entries": int,
                "releases": int,
                "unconfirmed": int,
                "unconfirmed_members": int,
                "same_user": bool,
                "key": _KEY,
                "signature": _SIGNATURE,
            }
        ],
    },
    "secure_aggregation": _Maybe(
        {
            "version": str,
            "planned_cohort": int,
            "threshold": int,
            "min_survivors": int,
            "max_colluders": int,
            "roster_hash": _HASH,
            "transcripts": [_HASH],
        }
    ),
    "unprotected": [str],
    "audit": [_ANYTHING],
    "scores": _Maybe({"accuracy": _BOUND, "loss": _Maybe(_LOSS)}),
    "versions": _ANYTHING,
    "coordinator": {"key": _KEY, "signature": _SIGNATURE},
}


def _check(value: Any, shape: Any, place: str) -> None:
    """See that a value has exactly the keys and types of its shape.

    Raises:
        MalformedError: the first place that has not.
    """
    match shape:
        case _Maybe():
            if value is not None:
                _check(value, shape.shape, place)
        case dict():
            if not isinstance(value, dict) or set(value) != set(shape):
                raise MalformedError(f"{place} has not exactly the keys {', '.join(sorted(shape))}")
            for name, part in shape.items():
                _check(value[name], part, name)
        case list():
            if not isinstance(value, list):
                raise MalformedError(f"{place} is not a list")
            for item in value:
                _check(item, shape[0], place)
        case _Matching():
            if not isinstance(value, str) or not re.fullmatch(shape.pattern, value):
                raise MalformedError(f"{place} is not {shape.what}")
        case type():
            if type(value) is not shape or (type(value) is int and not 0 <= value < _ABOVE_INTEGERS):
                raise MalformedError(f"{place} is {value!r:.80}; expected {_TYPES[shape]}")
            if type(value) is str and len(value) > _LONGEST_TEXT:
                raise MalformedError(f"{place} is a text of {len(value)} signs; expected at most {_LONGEST_TEXT}")
        case _:
            if not isinstance(value, dict):
                raise MalformedError(f"{place} is not a table")


_TYPES: Final = {str: "text", int: "an integer of at least 0 and below 2^63", bool: "true or false"}
