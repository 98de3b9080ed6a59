"""Attacks 5 to 9: replays, strangers, sets below min_survivors, other terms, boxes that are not the sender's."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from lying_server import LyingServer, ids, prepared
from small_federation import CONFIG, SESSION, Federation, client_id, sealed_by

from fedlearn.crypto.agreement import AgreementKey
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.secagg.messages import REFUSAL, Advert, Stage, encode_advertise, encode_bitmap, encode_entries
from fedlearn.secagg.transcript import Position, hash_context

VICTIM, OTHER = client_id(1), client_id(2)
ELSEWHERE = [Position(SESSION, 1, 1), Position(SESSION, 2, 0), Position(bytes(16), 1, 0)]
SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def shares(server: LyingServer, adverts: dict[bytes, bytes], client: bytes = VICTIM) -> bytes:
    """The victim's reply to a stage 1 of these adverts."""
    return server.ask(client, Stage.SHARE, b"".join(adverts[key] for key in sorted(adverts)))


def signed_advert(federation: Federation, number: int, **fields: bytes) -> bytes:
    """An advert of a crooked member, properly signed, with fields of its choice."""
    name = b"crooked %d" % number
    values = {
        "client_id": client_id(number),
        "mask_key": AgreementKey(hashlib.sha256(name + b"mask").digest()).public,
        "channel_key": AgreementKey(hashlib.sha256(name + b"channel").digest()).public,
        "commitment": hashlib.sha256(name).digest(),
    } | fields
    key = federation[number].member.key
    return Advert.signed(key, hash_context(federation.context()), *values.values()).to_bytes()


def advertised(federation: Federation) -> LyingServer:
    return prepared(federation, until=Stage.SHARE)[0]


def elsewhere(position: Position) -> LyingServer:
    """The same clients' messages of another attempt, round or session."""
    federation = Federation(4)
    federation.position = position
    for client in federation.clients.values():
        client.session = position.session
        client.restart()
    return prepared(federation, until=Stage.MASK)[0]


@pytest.mark.parametrize("position", ELSEWHERE)
def test_5_adverts_of_elsewhere_are_refused(position):
    server = advertised(Federation(4))
    assert shares(server, server.adverts | {OTHER: elsewhere(position).adverts[OTHER]}) == REFUSAL


@pytest.mark.parametrize("position", ELSEWHERE)
def test_5_boxes_of_elsewhere_are_refused(position):
    server = prepared(Federation(4), until=Stage.MASK)[0]
    server.boxes[OTHER] = elsewhere(position).boxes[OTHER]
    assert server.mask(VICTIM, server.members) == REFUSAL
    assert server.federation[1].contributions == 0


@pytest.mark.parametrize("position", ELSEWHERE)
def test_5_signatures_of_elsewhere_are_not_counted(position):
    old = elsewhere(position)
    for client in old.members:
        old.mask(client, old.members)
    server, _ = prepared(Federation(4))
    signatures = {client: old.sign(client, old.members) for client in old.members}
    signatures[VICTIM] = server.sign(VICTIM, server.members)
    assert server.unmask(VICTIM, signatures, server.members) is None


def test_5_a_reply_of_elsewhere_is_not_taken_by_the_server():
    federation = Federation(4)
    aggregator, later = federation.aggregator(), Federation(4)
    later.position = replace(federation.position, attempt=1)
    body = encode_advertise(later.context(), CONFIG)
    assert not aggregator.receive(Stage.ADVERTISE, VICTIM, later[1].sealed(Stage.ADVERTISE, later.position, body))
    assert VICTIM in aggregator.waiting


def test_6_a_key_that_is_not_in_the_roster_is_refused():
    server = advertised(Federation(4))
    stranger = SigningKey(bytes(32))
    forged = Advert.signed(
        stranger, hash_context(server.federation.context()), client_id(9), *[bytes([k]) * 32 for k in (3, 4, 5)]
    )
    assert shares(server, server.adverts | {client_id(9): forged.to_bytes()}) == REFUSAL
    server = advertised(Federation(4))
    forged = Advert.signed(
        stranger, hash_context(server.federation.context()), OTHER, *[bytes([k]) * 32 for k in (3, 4, 5)]
    )
    assert shares(server, server.adverts | {OTHER: forged.to_bytes()}) == REFUSAL


def test_6_an_id_twice_is_refused():
    server = advertised(Federation(4))
    body = b"".join(server.adverts[client] for client in ids(1, 2, 2, 3))
    assert server.ask(VICTIM, Stage.SHARE, body) == REFUSAL


@pytest.mark.parametrize("field", ["mask_key", "channel_key", "commitment"])
def test_6_a_key_twice_is_refused(field):
    server = advertised(Federation(4))
    copied = getattr(Advert.from_bytes(server.adverts[client_id(3)]), field)
    assert shares(server, server.adverts | {OTHER: signed_advert(server.federation, 2, **{field: copied})}) == REFUSAL


def test_6_one_key_for_both_purposes_is_refused():
    server = advertised(Federation(4))
    key = AgreementKey(bytes(range(32))).public
    forged = signed_advert(server.federation, 2, mask_key=key, channel_key=key)
    assert shares(server, server.adverts | {OTHER: forged}) == REFUSAL


def test_6_own_advert_altered_or_missing_is_refused():
    server = advertised(Federation(4))
    assert shares(server, server.adverts | {VICTIM: signed_advert(server.federation, 1)}) == REFUSAL
    server = advertised(Federation(4))
    assert shares(server, {client: server.adverts[client] for client in ids(2, 3, 4)}) == REFUSAL


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
@pytest.mark.parametrize("point", SMALL_ORDER)
def test_6_a_point_of_small_order_is_refused_by_clients_and_server(field, point):
    server = advertised(Federation(4))
    forged = signed_advert(server.federation, 2, **{field: point})
    assert shares(server, server.adverts | {OTHER: forged}) == REFUSAL
    assert server.federation[1].participant._attempt.state is None
    assert refused_by_server(forged)


@pytest.mark.parametrize("point", [2**255 - 19 + 9, 2**255 + 9, 2**256 - 1])
def test_6_a_point_that_is_not_canonical_is_refused(point):
    server = advertised(Federation(4))
    forged = signed_advert(server.federation, 2, mask_key=point.to_bytes(32, "little"))
    assert shares(server, server.adverts | {OTHER: forged}) == REFUSAL
    assert refused_by_server(forged)


def test_6_the_later_of_two_equal_keys_goes():
    federation = Federation(4)
    aggregator = federation.aggregator()
    body = aggregator.requests()[OTHER].to_bytes()
    for number in (1, 2, 3):
        sealed = federation[number].sealed(Stage.ADVERTISE, federation.position, body)
        aggregator.receive(Stage.ADVERTISE, client_id(number), sealed)
    copied = Advert.from_bytes(federation[1].reply(Stage.ADVERTISE, federation.position, body)).mask_key
    assert refused_by_server(signed_advert(federation, 4, mask_key=copied), aggregator, federation, 4)
    aggregator.close_stage()
    assert set(aggregator.requests()) == set(ids(1, 2, 3))


def refused_by_server(advert: bytes, aggregator=None, federation=None, number: int = 2) -> bool:
    federation = federation or Federation(4)
    aggregator = aggregator or federation.aggregator()
    body = aggregator.requests()[client_id(number)].to_bytes()
    sealed = sealed_by(federation[number], Stage.ADVERTISE, federation.position, body, advert)
    return aggregator.receive(Stage.ADVERTISE, client_id(number), sealed) and len(aggregator.incidents) == 1


def test_7_fewer_adverts_than_min_survivors_are_refused():
    server = advertised(Federation(7, min_survivors=6))
    assert shares(server, {client: server.adverts[client] for client in ids(1, 2, 3, 4, 5)}) == REFUSAL


def test_7_a_sum_below_min_survivors_is_refused():
    server, _ = prepared(Federation(7, min_survivors=6), until=Stage.MASK)
    assert server.mask(VICTIM, ids(1, 2, 3, 4, 5)) == REFUSAL
    assert server.federation[1].releases == 0
    assert server.mask(OTHER, ids(1, 2, 3, 4, 5, 6)) != REFUSAL


def test_7_survivors_below_min_survivors_are_refused():
    server, _ = prepared(Federation(7, min_survivors=6))
    assert server.sign(VICTIM, ids(1, 2, 3, 4, 5)) == REFUSAL
    assert len(server.sign(OTHER, ids(1, 2, 3, 4, 5, 6))) == 64


def test_7_a_set_without_the_client_itself_is_refused():
    server, _ = prepared(Federation(4), until=Stage.MASK)
    body = encode_bitmap(server.members, ids(2, 3, 4)) + server.masked_body(VICTIM, ids(1, 2, 3))[1:]
    assert server.ask(VICTIM, Stage.MASK, body) == REFUSAL
    server, _ = prepared(Federation(4))
    assert server.sign(VICTIM, ids(2, 3, 4)) == REFUSAL


def test_7_survivors_that_are_not_in_the_sum_are_refused():
    server, _ = prepared(Federation(4), until=Stage.MASK)
    for client in ids(1, 2, 3):
        server.mask(client, ids(1, 2, 3))
    assert server.sign(VICTIM, server.members) == REFUSAL


def test_7_signatures_below_the_threshold_unmask_nothing():
    server, _ = prepared(Federation(7))
    signatures = {client: server.sign(client, server.members) for client in server.members}
    few = {client: signatures[client] for client in ids(1, 2, 3, 4)}
    assert server.unmask(VICTIM, few, server.members) is None
    enough = {client: signatures[client] for client in ids(1, 2, 3, 4, 5)}
    assert server.unmask(OTHER, enough, server.members) is not None


def test_7_a_signature_of_a_client_that_did_not_survive_is_not_counted():
    server, _ = prepared(Federation(4))
    signatures = {client: server.sign(client, ids(1, 2, 3)) for client in ids(1, 2)}
    message = server.masking_hash(server.members) + encode_bitmap(server.members, ids(1, 2, 3))
    signatures[client_id(4)] = server.federation[4].member.key.sign("u3", message)
    assert server.unmask(VICTIM, signatures, server.members) is None


ALTERED = {
    "config_hash": bytes(32),
    "roster_hash": bytes(32),
    "layout_hash": bytes(32),
    "privacy_mode": 0,
    "planned_cohort": 11,
    "threshold": 6,
    "min_survivors": 7,
    "max_colluders": 2,
    "dimension": 6,
    "scale_bits": 20,
    "sensitivity": 1,
    "clip_bound": 9_999,
    "noise_std": 64,
    "sampling_denominator": 2,
    "stage_seconds": (60, 60, 60, 60, 60),
}


@pytest.mark.parametrize("field", ALTERED)
def test_8_terms_that_differ_from_what_the_client_derives_are_refused(field):
    federation = Federation(10, min_survivors=8)
    context = federation.context(**{field: ALTERED[field]})
    assert federation[1].reply(Stage.ADVERTISE, federation.position, encode_advertise(context, CONFIG)) == REFUSAL
    assert "differs from what this client derives" in federation[1].reasons[0]


IMPOSSIBLE = [
    {"threshold": 6},
    {"threshold": 8},
    {"min_survivors": 6},
    {"min_survivors": 11},
    {"max_colluders": 4},
    {"max_colluders": 0},
    {"privacy_mode": 5},
    {"privacy_mode": 2},
    {"noise_std": 63},
    {"noise_std": 1 << 26},
    {"clip_bound": 1 << 31},
    {"noise_std": 17_895_697},
    {"sampling_numerator": 2, "sampling_denominator": 1},
    {"sampling_numerator": 2, "sampling_denominator": 4},
    {"sampling_numerator": 0},
    {"sensitivity": 0},
    {"stage_seconds": (60, 60, 0, 60, 60)},
    {"dimension": 1 << 62},
    {"planned_cohort": 2},
    {"planned_cohort": 257},
]


@pytest.mark.parametrize("changes", IMPOSSIBLE)
def test_8_terms_that_cannot_hold_are_refused_even_where_a_client_derived_them(changes):
    vectors = [np.zeros(0, dtype=np.uint32)] * 10
    federation = Federation(10, vectors=vectors, **({"min_survivors": 8} | changes))
    context = encode_advertise(federation.context(), CONFIG)
    assert federation[1].reply(Stage.ADVERTISE, federation.position, context) == REFUSAL


@pytest.mark.parametrize("error", [RefusedError("not this model"), ConfigError("the plan is refused")])
def test_8_what_policy_or_plan_refuse_is_refused_in_the_same_bytes(error):
    federation = Federation(4)

    def agree(config):
        raise error

    federation[1].agree = agree
    federation[1].restart()
    body = encode_advertise(federation.context(), CONFIG)
    assert federation[1].reply(Stage.ADVERTISE, federation.position, body) == REFUSAL
    assert federation[1].reasons == [str(error)]


def with_boxes(change) -> bytes:
    """The victim's reply to a stage 2 whose boxes, {sender: box}, were changed."""
    server, _ = prepared(Federation(4), until=Stage.MASK)
    boxes = {sender: server.boxes[sender][VICTIM] for sender in ids(2, 3, 4)}
    change(boxes, server)
    body = (
        encode_bitmap(server.members, server.members) + encode_entries(boxes) + server.masked_body(VICTIM, [VICTIM])[1:]
    )
    return server.ask(VICTIM, Stage.MASK, body)


def test_9_boxes_in_order_are_taken():
    assert with_boxes(lambda *_: None) != REFUSAL


def test_9_swapped_boxes_are_refused():
    def swap(boxes, server):
        boxes[client_id(2)], boxes[client_id(3)] = boxes[client_id(3)], boxes[client_id(2)]

    assert with_boxes(swap) == REFUSAL


def test_9_a_reflected_box_is_refused():
    def reflect(boxes, server):
        boxes[OTHER] = server.boxes[VICTIM][OTHER]

    assert with_boxes(reflect) == REFUSAL


def test_9_a_box_for_another_receiver_is_refused():
    def redirect(boxes, server):
        boxes[OTHER] = server.boxes[OTHER][client_id(3)]

    assert with_boxes(redirect) == REFUSAL


def test_9_a_truncated_box_is_refused():
    def truncate(boxes, server):
        boxes[OTHER] = boxes[OTHER][:-1]

    assert with_boxes(truncate) == REFUSAL


def test_9_a_missing_box_is_refused():
    assert with_boxes(lambda boxes, _: boxes.pop(OTHER)) == REFUSAL


@pytest.mark.parametrize("bit", range(0, 82 * 8, 41))
def test_9_a_box_with_one_bit_changed_is_refused(bit):
    def flip(boxes, server):
        box = bytearray(boxes[OTHER])
        box[bit // 8] ^= 1 << bit % 8
        boxes[OTHER] = bytes(box)

    assert with_boxes(flip) == REFUSAL
