"""Replies that no agent gives, of every kind that was seen to end a run or to spoil a model without a word."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlearn.flower.in_process_grid import make_message
from fedlearn.flower.records import pack
from fedlearn.holder.frames import REFUSAL


def array_reply(values: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord([values]), "metrics": MetricRecord({"num-examples": 1.0})})


def frame_with(**records: object) -> RecordDict:
    content = pack(b"x" * 80)
    for name, record in records.items():
        content[name.replace("_", "-")] = record
    return content


def liar_array() -> ArrayRecord:
    """The header of an .npy file of 8 TB, and no data."""
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    return ArrayRecord({"0": Array("float64", (10**12,), "numpy.ndarray", head.ljust(128))})


BAD_REPLIES = {
    "NaN": array_reply(np.full(650, np.nan)),
    "infinite": array_reply(np.full(650, np.inf)),
    "huge": array_reply(np.full(650, 1e30)),
    "complex": array_reply(np.zeros(650, np.complex64)),
    "integers": array_reply(np.zeros(650, np.int64)),
    "another shape": array_reply(np.zeros((3, 3))),
    "strings": array_reply(np.array(["a", "b"])),
    "an array of 8 TB": RecordDict({"arrays": liar_array()}),
    "weight NaN": RecordDict({"metrics": MetricRecord({"num-examples": float("nan")})}),
    "another record name": RecordDict({"other": ConfigRecord({"frame": b"x"})}),
    "another key": RecordDict({"fedlearn": ConfigRecord({"other": b"x"})}),
    "two keys": RecordDict({"fedlearn": ConfigRecord({"frame": b"x", "other": b"x"})}),
    "nothing": RecordDict(),
    "a second record": frame_with(metrics=MetricRecord({"loss": 1.0})),
    "text": RecordDict({"fedlearn": ConfigRecord({"frame": "text"})}),
    "a list": RecordDict({"fedlearn": ConfigRecord({"frame": [b"x"]})}),
    "many keys": RecordDict({"fedlearn": ConfigRecord({f"k{i}": 1 for i in range(5000)})}),
    "empty bytes": pack(b""),
    "short bytes": pack(b"x"),
    "long bytes": pack(bytes(3 << 20)),
    "a refusal without a signature": pack(REFUSAL),
    "a vector of zeros without a signature": pack(bytes(4 * 653 + 64)),
}


def in_the_place_of(reply: Message) -> Message:
    """A message like the one that was asked, to reply to."""
    question = make_message(RecordDict(), reply.metadata.message_type, reply.metadata.src_node_id, "")
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return question
