"""What stands in an agent's log after rounds over records that cannot be read: nothing of them, and no secret."""

import io
import json
import logging
from pathlib import Path

import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.host.logs import log_as_json
from fedlearn.round.source import Source
from tests.holder.test_deployed_agent import Federation
from tests.holder_files import FOUR, key, table_source

TABLE = (
    "data.dataset=csv",
    "data.label=ill",
    'data.classes=[["no"], ["yes"]]',
    "data.columns.age={low=0, high=100}",
)


class OfTables(Federation):
    source = Source("csv", Path("never-opened.csv"))


@pytest.fixture
def log():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    log_as_json(stream, level=logging.DEBUG)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_neither_records_nor_keys_stand_in_a_log_of_anything(tmp_path, log):
    for member in range(4):
        (tmp_path / str(member)).mkdir()
        rows = "41,yes\n52,no\n" + ("patient-4711,no\n" if member == 0 else "")
        (tmp_path / str(member) / "records.csv").write_text(f"age,ill\n{rows}")
    asked = RunConfig.load("digits", [*FOUR, *TABLE])
    parties = OfTables(tmp_path, {"source": table_source("records.csv", asked)}, *TABLE)
    summed = parties.run()
    assert summed.survivors == 4
    for agent in parties.agents:
        agent.handle(0, "masked", b"patient-4711")
        agent.handle(0, "unmask", parties.frame("unmask", b"patient-4711"))
    parties.close()
    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert any("1 of 3 rows cannot be used" in json.dumps(line) for line in lines), "the holder is told"
    assert not [line for line in lines if "4711" in json.dumps(line)]
    assert not [m for m in range(4) if key(m).public.hex() in text or (bytes([100 + m]) * 32).hex() in text]
