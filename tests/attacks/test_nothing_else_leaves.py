"""Attacks 12 to 14, 17 and 18: what a reply may depend on.

Open until the agent is wired: the noise of a retry (14) and `masking = false` (18) are the agent's; here only that a
retry has fresh keys and masks, asks for a new contribution and books again.
"""

from dataclasses import replace

import numpy as np
import pytest
from lying_server import prepared
from small_federation import Federation, client_id, fixed_entropy, random_lanes

from fedlearn.crypto.keystream import Keystream
from fedlearn.errors import DataError
from fedlearn.secagg.messages import REFUSAL, Stage

VICTIM = client_id(1)


def every_message(vectors) -> dict[tuple[Stage, bytes, str], bytes]:
    """All requests and sealed replies of one attempt with one drop-out, the clients' entropy being the same."""
    federation = Federation(5, 16, vectors=vectors)
    aggregator, messages = federation.aggregator(), {}
    for stage in Stage:
        for client, request in aggregator.requests().items():
            sealed = federation.clients[client].sealed(stage, federation.position, request.to_bytes())
            messages |= {(stage, client, "request"): request.to_bytes(), (stage, client, "reply"): sealed}
            if (stage, client) != (Stage.MASK, client_id(3)):
                aggregator.receive(stage, client, sealed)
        aggregator.close_stage()
    return messages


def test_12_nothing_but_the_masked_vector_depends_on_the_data():
    first = every_message([random_lanes(f"one {n}", 16) for n in range(5)])
    second = every_message([np.zeros(16, dtype=np.uint32)] * 5)
    assert {key: len(message) for key, message in first.items()} == {
        key: len(message) for key, message in second.items()
    }
    different = {key for key in first if first[key] != second[key]}
    assert different == {(Stage.MASK, client_id(n), "reply") for n in range(1, 6)}


def test_12_every_refusal_is_the_same_bytes_in_its_envelope():
    replies = set()
    for body in (b"", bytes(209), bytes(500), b"\xff" * 213):
        federation = Federation(4)
        sealed = federation[1].sealed(Stage.ADVERTISE, federation.position, body)
        assert len(sealed) == 80
        replies.add(sealed[:-64])
    assert replies == {REFUSAL}


def test_13_an_error_of_the_holder_leaks_no_text():
    federation = Federation(4)
    server, _ = prepared(federation, until=Stage.MASK)

    def fail() -> None:
        raise DataError("row 17, column diagnosis: 'malignant'")

    federation[1].during_work = fail
    assert server.mask(VICTIM, server.members) == REFUSAL
    assert federation[1].reasons == ["row 17, column diagnosis: 'malignant'"]


def test_14_a_retry_has_fresh_keys_and_masks_and_is_booked_again():
    federation = Federation(4, entropy=lambda n: fixed_entropy(f"retry {n}"))
    first, masked = prepared(federation)
    federation.position = replace(federation.position, attempt=1)
    second, masked_again = prepared(federation)
    for client in first.members:
        fields = [server.adverts[client][16 + 32 * k : 48 + 32 * k] for server in (first, second) for k in range(3)]
        assert len(set(fields)) == 6
        assert masked[client] != masked_again[client]
    assert (federation[1].contributions, federation[1].releases) == (2, 2)


@pytest.mark.parametrize("bit", range(320))
def test_17_each_bit_of_a_seed_changes_the_stream(bit):
    """In 1,024 bits about half change; fewer than 400 or more than 624 with probability below 3e-12 a seed."""
    seed = bytearray(range(40))
    before = Keystream(bytes(seed)).read(0, 128)
    seed[bit // 8] ^= 1 << bit % 8
    after = Keystream(bytes(seed)).read(0, 128)
    changed = sum((x ^ y).bit_count() for x, y in zip(before, after, strict=True))
    assert 400 < changed < 624
