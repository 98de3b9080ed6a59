"""Read what comes from elsewhere in bounded time and memory: files, JSON, safetensors; `toml.py` does it for TOML.

A file of a few kB can ask for hours: a number of a million digits, brackets a hundred thousand deep. What is beyond
these bounds is no honest file, and is refused with a sentence before it is used.
"""

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from fedlearn.errors import ConfigError

__all__ = [
    "MOST_BYTES",
    "MOST_HEADER",
    "MOST_MODEL_BYTES",
    "read_bytes",
    "read_json",
    "read_number",
    "read_safetensors",
    "read_tensors",
    "read_whole",
]

MOST_BYTES: Final = 1 << 24  # of a text; a certificate of 50,000 attempts has as many
MOST_MODEL_BYTES: Final = 1 << 33
_MOST_DEPTH: Final = 32
_MOST_DIGITS: Final = 40
MOST_HEADER: Final = MOST_BYTES  # of a model: it has all columns of a table, and their quotes escaped

_NO_WAIT: Final[int] = getattr(os, "O_NONBLOCK", 0)
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # possessive: nothing is kept to go back to
_NUMBER: Final = re.compile(r"-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?")


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, of at most `most`; never waits for a pipe.

    Raises:
        ConfigError: it cannot be read, is no regular file, or is larger.
    """
    try:
        return read_whole(path, most=most)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def read_whole(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The same, for whoever answers the error itself.

    Raises:
        OSError: as `read_bytes`.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NO_WAIT), "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "expected a regular file", str(path))
        # So many bytes are allocated at once: as the file has, not as it may have.
        body = opened.read(min(most, max(about.st_size, MOST_BYTES)) + 1)
    if len(body) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return body


def read_json(body: bytes, *, what: str, most: int = MOST_BYTES) -> Any:
    """What UTF-8 JSON says; `what` begins the sentence when something is wrong.

    Guarantees:
        no integer of more than 40 digits, nothing nested deeper than 32, no number that is not finite.

    Raises:
        ConfigError: it is no JSON, or beyond these bounds.
    """
    if len(body) > most:
        raise ConfigError(f"{what} has {len(body)} bytes; expected at most {most}")
    _refuse_depth(body, what)
    try:
        return json.loads(body.decode(), parse_int=_integer, parse_float=_finite, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read as JSON: {str(error)[:100]}") from None


def read_number(text: object) -> float:
    """The finite number that a decimal stands for, of at most 25 digits on either side of the point.

    Raises:
        ValueError: it is no such text.
    """
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise ValueError(f"expected a decimal number as text, not {str(text)[:40]!r}")
    return _finite(text)


def read_tensors(body: bytes, *, what: str) -> dict[str, NDArray[Any]]:
    """The float32 tensors of a model's safetensors file, by name. `what` begins the sentence.

    Raises:
        ConfigError: as `read_safetensors`, or a tensor is not float32.
    """
    tensors, _ = read_safetensors(body, what=what)
    if any(values.dtype != np.float32 for values in tensors.values()):
        raise ConfigError(f"{what} has a tensor that is not float32; expected a model as a run writes it")
    return tensors


def read_safetensors(body: bytes, *, what: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata. `what` begins the sentence.

    Raises:
        ConfigError: it is no safetensors file, or its header is beyond the bounds of `read_json` or of 16 MiB.
    """
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > min(MOST_HEADER, len(body) - 8):
        raise ConfigError(f"{what} is no safetensors file: it ends before its header does, or the header is too long")
    header = read_json(body[8 : 8 + length], what=f"{what}: the header", most=MOST_HEADER)
    if not isinstance(header, dict):
        raise ConfigError(f"{what} is no safetensors file: its header is no table")
    try:
        tensors: dict[str, NDArray[Any]] = load(body)
    except (SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} is no safetensors file: {str(error)[:100]}") from None
    return tensors, {str(name): str(text) for name, text in (header.get("__metadata__") or {}).items()}


def _refuse_depth(body: bytes, what: str) -> None:
    """Count brackets before anything recursive reads them."""
    depth = 0
    for bracket in re.findall(rb"[][{}]", _STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MOST_DEPTH:
            raise ConfigError(f"{what} is nested more than {_MOST_DEPTH} deep")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _not_finite(text: str) -> float:
    raise ValueError(f"the number {text} is not finite")
