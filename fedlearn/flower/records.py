"""Frames as Flower's records: one byte string, so that no field can carry anything else."""

from typing import Final

from flwr.app import ConfigRecord, RecordDict

from fedlearn.errors import ProtocolError

__all__ = ["MESSAGE_TYPES", "pack", "unpack"]

# Flower routes a message by "category.action"; the action is the stage.
MESSAGE_TYPES: Final = {
    "identify": "query.identify",
    "advertise": "query.advertise",
    "share": "query.share",
    "masked": "train.masked",
    "consistency": "query.consistency",
    "unmask": "query.unmask",
    "attest": "query.attest",
}

_RECORD: Final = "fedlearn"
_FIELD: Final = "frame"


def pack(body: bytes) -> RecordDict:
    """A message's content."""
    return RecordDict({_RECORD: ConfigRecord({_FIELD: body})})


def unpack(content: RecordDict) -> bytes:
    """The bytes in a message's content.

    Raises:
        ProtocolError: anything else than exactly one byte string.
    """
    record = content.get(_RECORD)
    body = record.get(_FIELD) if isinstance(record, ConfigRecord) and len(content) == len(record) == 1 else None
    if not isinstance(body, bytes):
        raise ProtocolError("a message whose content is not one frame")
    return body
