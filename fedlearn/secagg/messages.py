"""The messages of the five stages, byte for byte (docs/protocol.md 3): strict decoders, canonical encoders.

A decoder takes exactly the bytes of one message, checks sizes before it allocates, and raises nothing but
ProtocolError.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

import numpy as np

from fedlearn.crypto.agreement import BOX_OVERHEAD, KEY_BYTES
from fedlearn.crypto.labels import REFUSAL
from fedlearn.crypto.shamir import SHARE_BYTES, decode_share
from fedlearn.crypto.signatures import SIGNATURE_BYTES, SigningKey, verify
from fedlearn.errors import ProtocolError
from fedlearn.secagg.masking import MaskedVector
from fedlearn.secagg.transcript import CONTEXT_BYTES, ID_BYTES, LANE_BYTES, Context, Position

__all__ = [
    "ADVERT_BYTES",
    "BOX_BYTES",
    "IDENTIFY",
    "MAX_CONFIG_BYTES",
    "REFUSAL",
    "Advert",
    "Envelope",
    "MaskedRequest",
    "Stage",
    "bitmap_bytes",
    "decode_advertise",
    "decode_adverts",
    "decode_bitmap",
    "decode_boxes",
    "decode_masked",
    "decode_shares",
    "decode_signatures",
    "encode_advertise",
    "encode_bitmap",
    "encode_entries",
    "encode_masked",
    "encode_shares",
    "is_identified",
]

ADVERT_BYTES: Final = ID_BYTES + 3 * KEY_BYTES + SIGNATURE_BYTES
BOX_BYTES: Final = 2 * SHARE_BYTES + BOX_OVERHEAD
MAX_CONFIG_BYTES: Final = 1 << 20


# Who a node is, is asked outside of the stages; its reply is sealed under this number.
IDENTIFY: Final = 255


class Stage(IntEnum):
    """The five stages of an attempt, in their order."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CONSISTENCY = 3
    UNMASK = 4


@dataclass(frozen=True, slots=True)
class Advert:
    """A client's keys for one attempt: mask key MK, channel key CK, commitment to its self-mask seed."""

    client_id: bytes
    mask_key: bytes
    channel_key: bytes
    commitment: bytes
    signature: bytes

    @classmethod
    def signed(cls, key: SigningKey, context_hash: bytes, *fields: bytes) -> "Advert":
        """The advert of (client_id, mask_key, channel_key, commitment) under the context `context_hash`."""
        client_id, mask_key, channel_key, commitment = fields
        signature = key.sign("adv", context_hash + b"".join(fields))
        return cls(client_id, mask_key, channel_key, commitment, signature)

    def is_valid(self, public: bytes, context_hash: bytes) -> bool:
        """Whether the owner of `public` signed this advert for this very context."""
        message = context_hash + self.to_bytes()[:-SIGNATURE_BYTES]
        return verify(public, self.signature, purpose="adv", message=message)

    def to_bytes(self) -> bytes:
        """176 bytes: id | MK | CK | com | signature."""
        return self.client_id + self.mask_key + self.channel_key + self.commitment + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> "Advert":
        """The advert in exactly 176 bytes.

        Raises:
            ProtocolError: another length.
        """
        if len(data) != ADVERT_BYTES:
            raise ProtocolError(f"an advert of {len(data)} bytes; expected {ADVERT_BYTES}")
        keys = [data[start : start + KEY_BYTES] for start in range(ID_BYTES, ID_BYTES + 3 * KEY_BYTES, KEY_BYTES)]
        return cls(data[:ID_BYTES], keys[0], keys[1], keys[2], data[-SIGNATURE_BYTES:])


@dataclass(frozen=True, slots=True)
class Envelope:
    """What binds a reply to its question: who answers what, where in the run."""

    position: Position
    stage: int
    client_id: bytes
    request_digest: bytes

    def seal(self, key: SigningKey, reply: bytes | memoryview) -> bytes:
        """reply | Ed25519(L("reply") | session | round | attempt | stage | id | request digest | SHA256(reply))."""
        return b"".join((reply, key.sign("reply", self._signed(reply))))

    def open(self, public: bytes, data: bytes) -> memoryview:
        """The reply in `data`, without a copy.

        Raises:
            ProtocolError: not signed by the owner of `public` for this very question.
        """
        view = memoryview(data)
        reply, signature = view[:-SIGNATURE_BYTES], bytes(view[-SIGNATURE_BYTES:])
        if not verify(public, signature, purpose="reply", message=self._signed(reply)):
            raise ProtocolError("a reply whose envelope does not verify")
        return reply

    def _signed(self, reply: bytes | memoryview) -> bytes:
        place = self.position.to_bytes() + bytes([self.stage]) + self.client_id
        return place + self.request_digest + hashlib.sha256(reply).digest()


def is_identified(public: bytes, client_id: bytes, session: bytes, challenge: bytes, reply: bytes) -> bool:
    """Whether `reply` is that of the owner of `public`, asked with these random bytes who it is."""
    digest = hashlib.sha256(challenge).digest()
    try:
        return Envelope(Position(session, 0, 0), IDENTIFY, client_id, digest).open(public, reply) == client_id
    except ProtocolError:
        return False


@dataclass(frozen=True, slots=True)
class MaskedRequest:
    """Request 2: bitmap of U2 over U1, the boxes from its other members, and the model's bytes (all that is left)."""

    bitmap: bytes
    boxes: bytes
    model: bytes | memoryview
    model_hash: bytes

    @classmethod
    def from_bytes(cls, body: bytes, members: Sequence[bytes]) -> "MaskedRequest":
        """The parts of a request; `members` is U1, and the bitmap says how many boxes follow. The model is hashed here.

        Raises:
            ProtocolError: too short, or a bitmap of nobody or with padding.
        """
        size = bitmap_bytes(len(members))
        chosen = decode_bitmap(body[:size], members)
        end = size + (len(chosen) - 1) * (ID_BYTES + BOX_BYTES)
        if not chosen or len(body) < end:
            raise ProtocolError("a request for a masked vector that is too short for its boxes")
        model = memoryview(body)[end:]
        return cls(body[:size], body[size:end], model, hashlib.sha256(model).digest())

    @property
    def digest(self) -> bytes:
        """SHA256(bitmap | boxes | SHA256(model)): a model is hashed once, at the server once a round."""
        return hashlib.sha256(self.bitmap + self.boxes + self.model_hash).digest()


def encode_advertise(context: Context, config: bytes) -> bytes:
    """Request 0: ctx | u32 length | canonical RunConfig."""
    return context.to_bytes() + len(config).to_bytes(4, "big") + config


def decode_advertise(body: bytes) -> tuple[Context, bytes]:
    """Context and configuration bytes of request 0.

    Raises:
        ProtocolError: not exactly these, or a configuration above 1 MiB.
    """
    start = CONTEXT_BYTES + 4
    if not start <= len(body) <= start + MAX_CONFIG_BYTES:
        raise ProtocolError(f"a first request of {len(body)} bytes")
    if int.from_bytes(body[CONTEXT_BYTES:start], "big") != len(body) - start:
        raise ProtocolError("a configuration of another length than it says")
    return Context.from_bytes(body[:CONTEXT_BYTES]), body[start:]


def decode_adverts(body: bytes, most: int) -> list[Advert]:
    """Request 1: at most `most` adverts, ids strictly increasing.

    Raises:
        ProtocolError: anything else.
    """
    entries = _entries(body, ADVERT_BYTES, most)
    return [Advert.from_bytes(entry) for entry in entries]


def encode_entries(entries: Mapping[bytes, bytes]) -> bytes:
    """A list of id | value, by id: boxes of 98 bytes, signatures of 80, adverts without their id."""
    return b"".join(client_id + entries[client_id] for client_id in sorted(entries))


def decode_boxes(body: bytes, expected: Sequence[bytes]) -> dict[bytes, bytes]:
    """The boxes, {id of the other side: ciphertext | tag}, one for each of `expected` (sorted) and no other.

    Raises:
        ProtocolError: anything else.
    """
    entries = _entries(body, ID_BYTES + BOX_BYTES, len(expected))
    boxes = {entry[:ID_BYTES]: entry[ID_BYTES:] for entry in entries}
    if list(boxes) != list(expected):
        raise ProtocolError("boxes of other clients than expected")
    return boxes


def decode_signatures(body: bytes, most: int) -> dict[bytes, bytes]:
    """Request 4: {id: signature}, at most `most`, ids strictly increasing.

    Raises:
        ProtocolError: anything else.
    """
    entries = _entries(body, ID_BYTES + SIGNATURE_BYTES, most)
    return {entry[:ID_BYTES]: entry[ID_BYTES:] for entry in entries}


def encode_bitmap(members: Sequence[bytes], chosen: Iterable[bytes]) -> bytes:
    """`chosen` among the sorted `members`: rank k (from 1) is bit 7-((k-1) mod 8) of byte (k-1)//8, the rest zero."""
    taken = set(chosen)
    if not taken <= set(members):
        raise AssertionError("chosen among members only")
    bits = np.array([member in taken for member in members], dtype=np.uint8)
    return np.packbits(bits).tobytes()


def decode_bitmap(data: bytes, members: Sequence[bytes]) -> tuple[bytes, ...]:
    """The chosen among the sorted `members`, sorted.

    Raises:
        ProtocolError: another length than ceil(n/8), or a padding bit that is not zero.
    """
    if len(data) != bitmap_bytes(len(members)):
        raise ProtocolError(f"a bitmap of {len(data)} bytes over {len(members)} clients")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if bits[len(members) :].any():
        raise ProtocolError("a bitmap whose padding is not zero")
    return tuple(member for member, bit in zip(members, bits, strict=False) if bit)


def bitmap_bytes(members: int) -> int:
    """Bytes of a bitmap over so many members: ceil(n/8)."""
    return -(-members // 8)


def encode_masked(masked: MaskedVector) -> memoryview:
    """Reply 2: the lanes, little-endian, not copied where this machine is."""
    return masked.astype("<u4", copy=False).data.cast("B")


def decode_masked(data: bytes | memoryview, lanes: int) -> MaskedVector:
    """The lanes of reply 2, read-only and not copied where this machine is little-endian.

    Raises:
        ProtocolError: another number of lanes.
    """
    if len(data) != LANE_BYTES * lanes:
        raise ProtocolError(f"a masked vector of {len(data)} bytes; expected {LANE_BYTES * lanes}")
    return MaskedVector(np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False))


def encode_shares(shares: Iterable[int]) -> bytes:
    """Shares one after the other, 33 bytes each."""
    return b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares)


def decode_shares(data: bytes | memoryview, count: int) -> list[int]:
    """Exactly `count` shares.

    Raises:
        ProtocolError: another length, or a share that is not below p.
    """
    if len(data) != count * SHARE_BYTES:
        raise ProtocolError(f"{len(data)} bytes of shares; expected {count * SHARE_BYTES}")
    return [decode_share(bytes(data[start : start + SHARE_BYTES])) for start in range(0, len(data), SHARE_BYTES)]


def _entries(body: bytes, size: int, most: int) -> list[bytes]:
    """Entries of a fixed size that begin with an id, ids strictly increasing."""
    count, rest = divmod(len(body), size)
    if rest or count > most:
        raise ProtocolError(f"a list of {len(body)} bytes; expected at most {most} entries of {size}")
    entries = [body[start : start + size] for start in range(0, len(body), size)]
    ids = [entry[:ID_BYTES] for entry in entries]
    if any(left >= right for left, right in pairwise(ids)):
        raise ProtocolError("a list whose ids do not increase")
    return entries
