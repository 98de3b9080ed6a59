"""F17 and F16: a long frame travels as an array in parts, the same bytes; one that is too long travels not at all."""

import tempfile
from functools import partial
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedlearn.errors import ConfigError, ProtocolError
from fedlearn.flower import client_app, messenger, node_app
from fedlearn.flower.in_process_grid import make_message
from fedlearn.flower.records import LONGEST_VALUE, MOST_MESSAGE_BYTES, pack, unpack
from fedlearn.flower.superlink_gate import MOST_BODY_BYTES
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.holder.socket import AgentServer
from fedlearn.host import memory_limits as room
from tests.faults.lossy_grid import Fate

PART = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
LIMIT = 100


def test_f17_a_long_frame_goes_through_flower_in_parts_of_5_mb_and_arrives_as_it_was():
    body = bytes(range(256)) * (PART // 100)
    sent = {name: part.deflate() for name, part in get_all_nested_objects(pack(body, longest_value=LIMIT)).items()}
    assert PART + 1000 < MOST_BODY_BYTES
    assert max(map(len, sent.values())) <= PART + 100
    came = inflate_object_from_contents(pack(body, longest_value=LIMIT).object_id, sent)
    assert isinstance(came, RecordDict)
    assert unpack(came, longest_value=LIMIT) == body


@pytest.mark.parametrize(("size", "form"), [(LIMIT, ConfigRecord), (LIMIT + 1, ArrayRecord)])
def test_f17_no_value_of_bytes_is_longer_than_the_limit(size, form):
    content = pack(bytes(size), longest_value=LIMIT)
    assert type(content["fedlearn"]) is form
    assert unpack(content, longest_value=LIMIT) == bytes(size)
    assert LONGEST_VALUE + 1000 < MOST_BODY_BYTES


def array(dtype: str = "uint8", shape: tuple[int, ...] = (200,), stype: str = "fedlearn.bytes", size: int = 200):
    return RecordDict({"fedlearn": ArrayRecord({"frame": Array(dtype, shape, stype, bytes(size))})})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pack(bytes(200), longest_value=200), id="a long value"),
        pytest.param(array(size=50, shape=(50,)), id="a short array"),
        pytest.param(array(shape=(10**13,)), id="a shape that lies"),
        pytest.param(array(dtype="float64"), id="another type"),
        pytest.param(array(stype="numpy.ndarray"), id="another form"),
        pytest.param(RecordDict({"fedlearn": ArrayRecord()}), id="no array"),
    ],
)
def test_f17_each_length_has_one_form_and_no_other_is_taken(content):
    with pytest.raises(ProtocolError):
        unpack(content, longest_value=LIMIT)


def test_f17_a_round_whose_vectors_are_long_gives_what_it_gives_otherwise(lossy_run, monkeypatch):
    small = {"longest_value": 1000}
    for module in (messenger, client_app):
        monkeypatch.setattr(module, "pack", partial(pack, **small))
        monkeypatch.setattr(module, "unpack", partial(unpack, **small))
    run = lossy_run(lambda stage, node, copies: Fate())
    (result,) = run.go()
    assert result.survivors == 4
    forms = {sent.stage: type(sent.message.content["fedlearn"]) for sent in run.grid.sent}
    assert forms["masked"] is ArrayRecord
    assert forms["unmask"] is ConfigRecord


def test_f16_a_message_that_is_too_long_ends_the_run_with_a_sentence_before_it_is_sent(lossy_run, monkeypatch):
    monkeypatch.setattr(messenger, "MOST_MESSAGE_BYTES", 2000)
    run = lossy_run(lambda stage, node, copies: Fate())
    with pytest.raises(ConfigError, match="stage masked would have 0 MB; expected at most"):
        run.go()
    assert {sent.stage for sent in run.grid.sent} == {"identify", "advertise", "share"}
    assert MOST_MESSAGE_BYTES == room.MOST_MESSAGE_BYTES == 200 * 10**6


@pytest.mark.parametrize(("less", "asked"), [(1, 0), (0, 1)])
def test_f16_a_node_carries_nothing_that_is_too_long_in_either_way(monkeypatch, less, asked):
    frame, seen = Frame("masked", "ab" * 16, 1, 0).to_bytes(), []
    monkeypatch.setattr(node_app, "MOST_MESSAGE_BYTES", len(frame) - less)

    def answer(client: int, stage: str, request: bytes) -> bytes:
        seen.append(request)
        return bytes(len(frame) + 1)

    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        path = Path(place) / "agent.sock"
        known = {node_app.SOCKET_KEY: str(path)}
        context = Context(run_id=0, node_id=1, node_config=known, state=RecordDict(), run_config={})
        with AgentServer(path, answer, clients=1):
            reply = node_app.app(make_message(pack(frame), "train.masked", 1, "", 5.0), context)
    assert unpack(reply.content) == REFUSAL
    assert len(seen) == asked
