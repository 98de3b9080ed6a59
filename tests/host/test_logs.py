"""What fedlearn's own logging writes, and what it must not."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from fedlearn.errors import DataError, RefusedError
from fedlearn.host.logs import line_of, log_as_json

log = logging.getLogger("fedlearn.test")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    log_as_json(stream)
    yield stream
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)


def told(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_with_time_level_logger_and_message(lines):
    log.info("round %d begins\nnow", 3)
    (line,) = told(lines)
    assert set(line) == {"time", "level", "logger", "message"}
    assert line["message"] == "round 3 begins\nnow"
    assert line["level"] == "info"


def test_orders_to_a_terminal_stand_in_no_line(lines):
    log.info("\x1b[1;92mINFO\x1b[0m :      %s", "started\x1b[0m")
    (line,) = told(lines)
    assert line["message"] == "INFO :      started"
    assert json.loads(line_of("flwr", "\x1b[93mWARNING\x1b[0m: x"))["message"] == "WARNING: x"


def test_what_an_exception_says_stands_in_no_line(lines):
    try:
        raise ValueError("patient-4711 has no age")
    except ValueError as error:
        log.exception("local work failed")
        log.info("refused: %s", error)
    assert "4711" not in lines.getvalue()
    first, second = told(lines)
    assert first["exception"] == "ValueError"
    assert "test_logs:" in str(first["at"])
    assert second["message"] == "refused: ValueError"


def test_sentences_of_ours_stand_there_but_those_about_records(lines):
    log.info("refused: %s", RefusedError("the policy accepts 3"))
    log.info("refused: %s", DataError("row 17 is 'HIV'"))
    assert [line["message"] for line in told(lines)] == ["refused: the policy accepts 3", "refused: DataError"]


def test_f19_headers_that_open_calls_of_a_node_stand_in_no_line(lines):
    log.info("headers: Flwr-Signature: abcdef")
    assert "abcdef" not in lines.getvalue()
