"""fedlearn gives the known answers, and so does the slow reference, whose only common ground is docs/protocol.md."""

import json
from pathlib import Path

import numpy as np
import pytest
from generate import answers, reference_client
from reference import ed25519, hkdf

from fedlearn.crypto.agreement import AgreementKey, derive_key, open_box, seal_box
from fedlearn.crypto.keystream import Keystream
from fedlearn.crypto.labels import DERIVATION_LABELS, HASH_LABELS, SIGNATURE_LABELS, label
from fedlearn.crypto.shamir import combine, decode_share, split
from fedlearn.crypto.signatures import SigningKey
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.messages import REFUSAL, Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.stages import Member
from fedlearn.secagg.transcript import Context, hash_context

HERE = Path(__file__).parent
PRIMITIVES = json.loads((HERE / "primitives.json").read_text())
ROUND = json.loads((HERE / "round_of_four.json").read_text())
hexed = bytes.fromhex


def test_the_reference_gives_the_known_answers():
    assert {name: json.loads((HERE / name).read_text()) for name in answers()} == answers()


def test_labels_are_known_and_there_are_no_others():
    assert {
        purpose: label(purpose).hex() for purpose in HASH_LABELS + DERIVATION_LABELS + SIGNATURE_LABELS
    } == PRIMITIVES["labels"]
    assert hexed(PRIMITIVES["refusal"]) == REFUSAL


@pytest.mark.parametrize("read", PRIMITIVES["keystream"]["reads"], ids=lambda read: str(read["offset"]))
def test_keystream(read):
    stream = Keystream(hexed(PRIMITIVES["keystream"]["seed"]))
    assert stream.read(read["offset"], len(read["bytes"]) // 2).hex() == read["bytes"]


@pytest.mark.parametrize("case", PRIMITIVES["derivations"], ids=lambda case: case["purpose"])
def test_derivations(case):
    secret, salt, context = hexed(case["secret"]), hexed(case["salt"]), hexed(case["context"])
    size = len(case["out"]) // 2
    assert derive_key(secret, salt=salt, purpose=case["purpose"], context=context, size=size).hex() == case["out"]


def test_shamir_shares_for_fixed_coefficients():
    case = PRIMITIVES["shamir"]
    shares = split(hexed(case["secret"]), coefficients=[int(c, 16) for c in case["coefficients"]], holders=7)
    assert [share.hex() for share in shares] == case["shares"]
    assert combine({x: decode_share(shares[x - 1]) for x in (2, 3, 5, 7)}) == hexed(case["secret"])


def test_published_answers_of_the_primitives_underneath():
    published = PRIMITIVES["published"]
    case = published["rfc7748"]
    key = AgreementKey(hexed(case["private"]))
    assert (key.public.hex(), key.exchange(hexed(case["peer"])).hex()) == (case["public"], case["shared"])
    case = published["rfc8032"]
    assert SigningKey(hexed(case["private"])).public.hex() == case["public"]
    assert ed25519(hexed(case["private"]), b"").hex() == case["signature_of_nothing"]
    case = published["rfc5869"]
    assert hkdf(hexed(case["secret"]), hexed(case["salt"]), hexed(case["info"]), 42).hex() == case["out"]
    case = published["nist_gcm"]
    assert seal_box(hexed(case["key"]), hexed(case["plain"]), b"").hex() == case["box"]
    assert open_box(hexed(case["key"]), hexed(case["box"]), b"").hex() == case["plain"]


def test_context_and_its_hash():
    context = Context.from_bytes(hexed(ROUND["ctx"]))
    context.fields.check()
    assert context.to_bytes().hex() == ROUND["ctx"]
    assert hash_context(context).hex() == ROUND["c0"]


def test_every_message_of_a_round_is_the_known_one():
    """The real aggregator drives the real participants with the vector's secrets; client 3 is lost in stage 2."""
    context, lost = Context.from_bytes(hexed(ROUND["ctx"])), hexed(ROUND["lost"])
    participants = {hexed(client["client_id"]): participant(client, context) for client in ROUND["clients"]}
    roster = {client: party.member.key.public for client, party in participants.items()}
    model = hexed(ROUND["model"])
    aggregator = Aggregator(context, hexed(ROUND["config"]), model=model, roster=roster, asked=roster)
    vectors = {hexed(client["client_id"]): np.array(client["vector"], dtype=np.uint32) for client in ROUND["clients"]}
    messages = []
    for stage in Stage:
        for client, request in aggregator.requests().items():
            body, party = request.to_bytes(), participants[client]
            sealed = (
                party.answer_masked(context.position, body, lambda _, x=vectors[client]: x, lambda: None)
                if stage is Stage.MASK
                else party.answer(stage, context.position, body)
            )
            messages.append({"stage": stage, "client": client.hex(), "request": body.hex(), "reply": sealed.hex()})
            assert (stage is Stage.MASK and client == lost) or aggregator.receive(stage, client, sealed)
        aggregator.close_stage()
    result = aggregator.unmask()
    assert messages == ROUND["messages"]
    assert result.lanes.tolist() == ROUND["sum"]
    assert result.masking_hash.hex() == ROUND["c2"]


def participant(client: dict, context: Context) -> Participant:
    drawn = [client["mask_seed"], client["channel_seed"], client["self_mask_seed"]]
    drawn += client["mask_coefficients"] + client["self_coefficients"]
    stream = iter(hexed("".join(drawn)))
    roster = {hexed(other["client_id"]): hexed(other["public"]) for other in ROUND["clients"]}
    return Participant(
        Member(hexed(client["client_id"]), SigningKey(hexed(client["identity_seed"])), roster),
        context.position.session,
        entropy=lambda size: bytes(next(stream) for _ in range(size)),
        agree=lambda _: context.fields,
        advance=lambda *_: None,
        on_refusal=lambda stage, error: pytest.fail(f"{stage}: {error}"),
    )


def test_the_known_sum_is_that_of_the_survivors():
    survivors = [reference_client(client) for client in ROUND["clients"] if client["client_id"] != ROUND["lost"]]
    assert ROUND["sum"] == [
        sum(values) % 2**32 for values in zip(*(client.vector for client in survivors), strict=True)
    ]
