"""Frames as Flower's records: one byte string, so that no field can carry anything else.

A short one is one value. A long one is one array of bytes, which Flower cuts into parts of 5 MB: as one value it would
take six times the time and three times the memory (docs/specification/faults.md F17). Each length has one form.
"""

from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedlearn.errors import ProtocolError
from fedlearn.stages import ADVERTISE, ATTEST, CONSISTENCY, IDENTIFY, MASKED, SHARE, UNMASK

__all__ = ["LONGEST_VALUE", "MESSAGE_TYPES", "MOST_MESSAGE_BYTES", "pack", "unpack"]

# Flower routes a message by "category.action"; the action is the stage.
MESSAGE_TYPES: Final = {
    IDENTIFY: "query.identify",
    ADVERTISE: "query.advertise",
    SHARE: "query.share",
    MASKED: "train.masked",
    CONSISTENCY: "query.consistency",
    UNMASK: "query.unmask",
    ATTEST: "query.attest",
}
# Bytes of a frame that is one value, no more than a part of an array: so no object on its way is longer than a part.
LONGEST_VALUE: Final = 5 * 10**6
# Bytes of the longest frame that is sent over a network, as in `fedlearn.host.memory_limits`, which a message's
# process does without.
MOST_MESSAGE_BYTES: Final = 200 * 10**6

_RECORD: Final = "fedlearn"
_FIELD: Final = "frame"
_STYPE: Final = "fedlearn.bytes"  # the array's data are the bytes themselves: nothing has to be parsed


def pack(body: bytes, *, longest_value: int = LONGEST_VALUE) -> RecordDict:
    """A message's content."""
    if len(body) <= longest_value:
        return RecordDict({_RECORD: ConfigRecord({_FIELD: body})})
    array = Array(dtype="uint8", shape=(len(body),), stype=_STYPE, data=body)
    return RecordDict({_RECORD: ArrayRecord({_FIELD: array})})


def unpack(content: RecordDict, *, longest_value: int = LONGEST_VALUE) -> bytes:
    """The bytes in a message's content.

    Raises:
        ProtocolError: anything else than what `pack` makes of some bytes.
    """
    record = content.get(_RECORD)
    whole = isinstance(record, ConfigRecord | ArrayRecord) and len(content) == len(record) == 1
    field = record.get(_FIELD) if isinstance(record, ConfigRecord | ArrayRecord) and whole else None
    if isinstance(field, bytes) and len(field) <= longest_value:
        return field
    # `data` is whatever arrived: nothing is allocated by what dtype and shape say
    if isinstance(field, Array) and len(field.data) > longest_value and _is_of_bytes(field):
        return field.data
    raise ProtocolError("a message whose content is not one frame")


def _is_of_bytes(array: Array) -> bool:
    return (array.dtype, tuple(array.shape), array.stype) == ("uint8", (len(array.data),), _STYPE)
