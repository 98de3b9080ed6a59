"""Attack 16: every decoder takes 10,000 mutated inputs with no exception but ProtocolError, fast and in bounded memory.

`FEDLEARN_MUTATIONS` in the environment gives another number (`make soak`: 1,000,000).
"""

import os
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest
from small_federation import CONFIG, MODEL, Federation, client_id

from fedlearn.crypto.shamir import decode_share
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ProtocolError
from fedlearn.secagg.messages import (
    Advert,
    Envelope,
    MaskedRequest,
    Stage,
    decode_advertise,
    decode_adverts,
    decode_bitmap,
    decode_boxes,
    decode_masked,
    decode_shares,
    decode_signatures,
    encode_advertise,
)
from fedlearn.secagg.transcript import Context

MUTATIONS = int(os.environ.get("FEDLEARN_MUTATIONS", "10000"))
FEDERATION = Federation(9)
MEMBERS = FEDERATION.ids
KEY = SigningKey(bytes(32))
ENVELOPE = Envelope(FEDERATION.position, Stage.SHARE, client_id(1), bytes(32))


def entries(size: int) -> bytes:
    return b"".join(client + bytes(size - 16) for client in MEMBERS)


DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "context": (Context.from_bytes, FEDERATION.context().to_bytes()),
    "advertise": (decode_advertise, encode_advertise(FEDERATION.context(), CONFIG)),
    "advert": (Advert.from_bytes, entries(176)[:176]),
    "adverts": (lambda data: decode_adverts(data, 9), entries(176)),
    "boxes": (lambda data: decode_boxes(data, MEMBERS), entries(98)),
    "bitmap": (lambda data: decode_bitmap(data, MEMBERS), b"\xff\x80"),
    "masked request": (lambda data: MaskedRequest.from_bytes(data, MEMBERS), b"\xff\x80" + entries(98)[98:] + MODEL),
    "masked": (lambda data: decode_masked(data, 8), bytes(32)),
    "signatures": (lambda data: decode_signatures(data, 9), entries(80)),
    "share": (decode_share, bytes(33)),
    "shares": (lambda data: decode_shares(data, 9), bytes(33 * 9)),
    "envelope": (lambda data: ENVELOPE.open(KEY.public, data), ENVELOPE.seal(KEY, b"reply")),
}


def mutated(data: bytes, random: Random) -> bytes:
    """One to four changes: a bit, a byte, a cut, a repeat, an insertion, an extreme."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1 if at < len(changed):
                changed[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + random.randint(1, 200)]
            case 3:
                changed[at:at] = changed[at : at + random.randint(1, 200)]
            case 4:
                changed[at:at] = random.randbytes(random.randint(1, 16))
            case _:
                changed[at : at + 4] = random.choice((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"))
    return bytes(changed)


@pytest.mark.parametrize("name", DECODERS)
def test_16_a_decoder_raises_nothing_but_protocol_errors(name):
    decode, valid = DECODERS[name]
    decode(valid)
    random = Random(name)
    for _ in range(MUTATIONS if name != "envelope" else MUTATIONS // 10):
        data = mutated(valid, random)
        try:
            decode(data)
        except ProtocolError:
            continue


@pytest.mark.parametrize("name", DECODERS)
def test_16_a_decoder_allocates_no_more_than_a_few_times_its_input(name):
    decode, valid = DECODERS[name]
    tried = [valid, *(mutated(valid, Random(k)) for k in range(50)), random_megabyte()]
    for data in tried:
        tracemalloc.start()
        try:
            decode(data)
        except ProtocolError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 8 * len(data) + (1 << 16)


def random_megabyte() -> bytes:
    return Random(1).randbytes(1 << 20)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ("masked request", "envelope", "masked")])
def test_16_what_is_decoded_is_the_canonical_encoding(name):
    """No two byte strings mean the same: whatever a decoder takes, it takes only in its one form."""
    decode, valid = DECODERS[name]
    random, seen = Random(name), {}
    for _ in range(2000):
        data = mutated(valid, random)
        try:
            decoded = decode(data)
        except ProtocolError:
            continue
        assert seen.setdefault(repr(decoded), data) == data


@pytest.mark.parametrize("stage", list(Stage))
def test_16_a_client_answers_any_body_with_a_reply_or_the_refusal(stage):
    from test_rule_of_one import honest_bodies

    federation = Federation(4)
    bodies = honest_bodies(federation)
    for number in range(150):
        client = Federation(4)[1]
        for earlier in list(Stage)[:stage]:
            client.reply(earlier, federation.position, bodies[earlier])
        sealed = client.sealed(stage, federation.position, mutated(bodies[stage], Random(number)))
        assert len(sealed) >= 80
