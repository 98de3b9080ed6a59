"""The one place where fedlearn's own logging is set up: one JSON object a line, on stderr.

Guarantees:
    what an exception says stands in no line (it may quote a record or a key): only its type, and where it was raised;
    sentences of a `FedlearnError` stand there, for they are written for a log, but not those of a `DataError`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from fedlearn.errors import DataError, FedlearnError

__all__ = ["log_as_json", "without_secrets"]

# Of these a line would say what another process must not know: they open calls of a node (reliability.md, F19).
_SECRET_WORDS: Final = ("flwr-signature", "flwr-public-key", "private key", "authorization:")


def log_as_json(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Make this process's loggers write JSON lines to `stream`, by default stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a full disk must not end up as a traceback


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line |= _of_exception(record.exc_info[1])
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    arguments = record.args
    if isinstance(arguments, tuple):
        arguments = tuple(_said(argument) for argument in arguments)
    text = str(record.msg) % arguments if arguments else str(record.msg)
    return without_secrets(text)


def without_secrets(line: str) -> str:
    """`line`, or what stands in its place where it may hold what opens a call."""
    return line if not any(word in line.lower() for word in _SECRET_WORDS) else "(a line that names a secret)"


def _said(argument: object) -> object:
    told = isinstance(argument, FedlearnError) and not isinstance(argument, DataError)
    return argument if told or not isinstance(argument, BaseException) else type(argument).__name__


def _of_exception(error: BaseException) -> dict[str, Any]:
    places = []
    traceback = error.__traceback__
    while traceback is not None:
        places.append(f"{traceback.tb_frame.f_globals.get('__name__', '?')}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return {"exception": type(error).__name__, "at": places}
