"""The one place where fedlearn's own logging is set up: one JSON object a line, on stderr.

Services say what they do by `tell`: a sentence for a person, and a JSON line where $FEDLEARN_LOG is "json", as for a
service in the background.

Guarantees:
    what an exception says stands in no line (it may quote a record or a key): only its type, and where it was raised;
    sentences of a `FedlearnError` stand there, for they are written for a log, but not those of a `DataError`.
"""

import logging
import os
import re
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Protocol, TextIO

from fedlearn.canonical import told_json
from fedlearn.errors import ConfigError, DataError, FedlearnError

__all__ = ["LOG_VARIABLE", "Tell", "begin_log", "line_of", "log_as_json", "tell", "tell_error", "without_secrets"]

LOG_VARIABLE: Final = "FEDLEARN_LOG"

# No line may have these: they open calls of a node to whoever reads them (docs/specification/faults.md F19).
_SECRET_WORDS: Final = ("flwr-signature", "flwr-public-key", "private key", "authorization:")
_FACTS: Final = "facts"
# Orders to a terminal, as Flower writes them between its words.
_COLORS: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\^_])")

_service = logging.getLogger("fedlearn.service")


class Tell(Protocol):
    """Says a sentence; facts are names, numbers and states in it, by themselves."""

    def __call__(self, sentence: str, **facts: str | int) -> None: ...


def begin_log() -> None:
    """Log as $FEDLEARN_LOG says: JSON lines, or ("text", or nothing) sentences.

    Raises:
        ConfigError: it says something else.
    """
    asked = os.environ.get(LOG_VARIABLE, "text")
    if asked not in ("json", "text"):
        raise ConfigError(f"${LOG_VARIABLE} is {asked}; expected json or text")
    if asked == "json":
        log_as_json(level=logging.WARNING)
        logging.getLogger("fedlearn").setLevel(logging.INFO)


def tell(sentence: str, **facts: str | int) -> None:
    """Implements `Tell` on stderr, after `begin_log`."""
    if _is_json():
        _service.info("%s", sentence, extra={_FACTS: facts})
    else:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def tell_error(sentence: str) -> bool:
    """Log why a command ended; whether it was logged, and need not be said in another way."""
    if _is_json():
        _service.error("%s", sentence)
    return _is_json()


def log_as_json(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Make this process's loggers write JSON lines to `stream`, by default stderr; so end exceptions nobody caught."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a full disk must not end up as a traceback
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda told: _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def line_of(logger: str, message: str) -> str:
    """A line with another program's words."""
    return told_json(_line(datetime.now(UTC), "info", logger, message))


def without_secrets(line: str) -> str:
    """`line`, or what stands in its place where it may hold what opens a call."""
    return line if not any(word in line.lower() for word in _SECRET_WORDS) else "(a line that names a secret)"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line = _line(time, record.levelname.lower(), record.name, _message(record)) | getattr(record, _FACTS, {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _of_exception(record.exc_info[1])
        return told_json(line)


def _line(time: datetime, level: str, logger: str, message: str) -> dict[str, Any]:
    told = _COLORS.sub("", message)
    return {"time": time.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": told}


def _message(record: logging.LogRecord) -> str:
    arguments = record.args
    if isinstance(arguments, tuple):
        arguments = tuple(_said(argument) for argument in arguments)
    text = str(record.msg) % arguments if arguments else str(record.msg)
    return without_secrets(text)


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


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    del traceback
    logging.getLogger("fedlearn").critical("ended by an error that nobody foresaw", exc_info=error or kind())


def _is_json() -> bool:
    return os.environ.get(LOG_VARIABLE) == "json"
