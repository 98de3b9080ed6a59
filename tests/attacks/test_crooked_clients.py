"""Attacks 10 and 11: a late vector stays hidden; wrong shares, commitments and vectors are noticed."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from lying_server import LyingServer, ids, prepared
from small_federation import Federation, client_id, sealed_by, sealed_vector

from fedlearn.crypto.agreement import AgreementKey
from fedlearn.crypto.shamir import PRIME, decode_share, split
from fedlearn.secagg import stages
from fedlearn.secagg.aggregator import Aggregator, AttemptFailedError, Blame
from fedlearn.secagg.masking import add_keystreams
from fedlearn.secagg.messages import REFUSAL, Stage, encode_shares
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.recovery import Recovery
from fedlearn.secagg.transcript import CHECK_LANES, pair_seed

CROOKED = client_id(2)


class DealsWrongShares(Participant):
    """Seals other shares for client 3 than its polynomials have."""

    def _step(self, attempt, body):
        original = stages.split

        def split(secret, *, coefficients, holders):
            shares = original(secret, coefficients=coefficients, holders=holders)
            return [*shares[:2], bytes(33), *shares[3:]]

        stages.split = split
        try:
            return super()._step(attempt, body)
        finally:
            stages.split = original


class CommitsToAnotherSecret(Participant):
    """Its self-mask seed is not the one that it advertised."""

    def _step(self, attempt, body):
        if attempt.replies.keys() == {Stage.ADVERTISE}:
            attempt.state = replace(attempt.state, self_mask_seed=bytes(32))
        return super()._step(attempt, body)


class ReturnsWrongShares(Participant):
    """Answers stage 4 with ones."""

    def _step(self, attempt, body):
        following, reply = super()._step(attempt, body)
        return following, encode_shares([1] * (len(reply) // 33)) if following is None else reply


class MasksWrongly(Participant):
    """Sends a vector of the right size that is not masked as agreed."""

    def finish_masked(self, work, lanes):
        return super().finish_masked(replace(work, _opened=replace(work._opened, plus=())), lanes)


class CountsTwice(Participant):
    """Adds two to the counter."""

    def finish_masked(self, work, lanes):
        original = stages.with_check_words

        def with_check_words(entries, masking_hash):
            masked = original(entries, masking_hash)
            masked[-CHECK_LANES] += 1
            return masked

        stages.with_check_words = with_check_words
        try:
            return super().finish_masked(work, lanes)
        finally:
            stages.with_check_words = original


def until(federation: Federation, stage: Stage) -> Aggregator:
    aggregator = federation.aggregator()
    federation.advance(aggregator, stage)
    return aggregator


def finished(federation: Federation, aggregator: Aggregator):
    federation.exchange(aggregator)
    federation.advance(aggregator, Stage.UNMASK)
    federation.exchange(aggregator)
    return aggregator.unmask()


def test_10_a_late_vector_of_a_dropped_client_is_discarded():
    federation = Federation(4)
    aggregator = until(federation, Stage.MASK)
    body = aggregator.requests()[CROOKED].to_bytes()
    late = federation[2].sealed(Stage.MASK, federation.position, body)
    federation.exchange(aggregator, gone=[CROOKED])
    aggregator.close_stage()
    assert not aggregator.receive(Stage.MASK, CROOKED, late)
    federation.exchange(aggregator)
    aggregator.close_stage()
    federation.exchange(aggregator)
    assert np.array_equal(aggregator.unmask().lanes, federation.sum_of([1, 3, 4]))


def test_10_what_is_asked_about_a_dropped_client_leaves_its_late_vector_hidden():
    """The shares given are those of its mask seed; without b what remains is under its own mask."""
    federation = Federation(4, 64)
    server, masked = prepared(federation)
    survivors = ids(1, 3, 4)
    shares = server.collect(survivors, survivors, server.members)
    seed = server.secret(CROOKED, shares)
    assert AgreementKey(seed).public == server.mask_key(CROOKED)
    assert peeled(server, masked[CROOKED], seed)[:64].tolist() != federation[2].vector.tolist()
    assert (peeled(server, masked[CROOKED], seed)[:64] != federation[2].vector).sum() > 60


def peeled(server: LyingServer, reply: bytes, seed: bytes):
    """A vector less all masks that its mask seed gives."""
    lanes, plus, minus = np.frombuffer(reply, "<u4").astype(np.uint32), [], []
    for peer in set(server.members) - {CROOKED}:
        low, high = [(client, server.mask_key(client)) for client in sorted((CROOKED, peer))]
        shared = AgreementKey(seed).exchange(server.mask_key(peer))
        mask = pair_seed(shared, server.masking_hash(server.members), low=low, high=high)
        (plus if peer > CROOKED else minus).append(mask)
    add_keystreams(lanes, minus, plus)
    return lanes


@pytest.mark.parametrize("kind", [DealsWrongShares, ReturnsWrongShares])
def test_11_wrong_shares_are_blamed_on_a_pair_and_the_sum_is_right(kind):
    """Seven of ten responders are tried first; where a liar is among them, other sevens are."""
    federation = Federation(10, kinds={2: kind})
    result = federation.play()
    assert np.array_equal(result.lanes, federation.sum_of(range(1, 11)))
    if kind is DealsWrongShares:
        assert result.blames == (Blame(CROOKED, client_id(3)),)
    else:
        assert {blame.holder for blame in result.blames} == {CROOKED}


def test_11_with_no_honest_threshold_the_attempt_ends():
    federation = Federation(4, kinds=dict.fromkeys((2, 3), ReturnsWrongShares))
    with pytest.raises(AttemptFailedError, match="fits its commitment"):
        federation.play()


def test_11_a_wrong_commitment_ends_the_attempt():
    federation = Federation(4, kinds={2: CommitsToAnotherSecret})
    with pytest.raises(AttemptFailedError, match="fits its commitment"):
        federation.play()


@pytest.mark.parametrize("size", [0, 1, 4 * 7, 4 * 9, 33])
def test_11_a_vector_of_another_size_is_not_counted(size):
    federation = Federation(4)
    aggregator = until(federation, Stage.MASK)
    body = aggregator.requests()[CROOKED].to_bytes()
    wrong = sealed_vector(federation[2], federation, body, federation.ids, bytes(size))
    assert aggregator.receive(Stage.MASK, CROOKED, wrong)
    assert np.array_equal(finished(federation, aggregator).lanes, federation.sum_of([1, 3, 4]))


@pytest.mark.parametrize("kind", [MasksWrongly, CountsTwice])
def test_11_a_wrong_mask_or_count_is_noticed_by_the_check_words(kind):
    federation = Federation(4, kinds={2: kind})
    with pytest.raises(AttemptFailedError, match="check words"):
        federation.play()


def test_11_shares_that_are_no_field_elements_are_not_used():
    federation = Federation(4)
    aggregator = until(federation, Stage.UNMASK)
    body = aggregator.requests()[CROOKED].to_bytes()
    wrong = sealed_by(federation[2], Stage.UNMASK, federation.position, body, PRIME.to_bytes(33, "big") * 4)
    assert aggregator.receive(Stage.UNMASK, CROOKED, wrong)
    federation.exchange(aggregator, gone=[CROOKED])
    assert np.array_equal(aggregator.unmask().lanes, federation.sum_of([1, 2, 3, 4]))


@pytest.mark.parametrize("change", ["order", "stranger", "missing", "itself", "size"])
def test_11_boxes_that_are_not_one_for_every_peer_drop_their_sender(change):
    federation = Federation(4)
    aggregator = until(federation, Stage.SHARE)
    body = aggregator.requests()[CROOKED].to_bytes()
    reply = federation[2].reply(Stage.SHARE, federation.position, body)
    boxes = [reply[start : start + 98] for start in range(0, len(reply), 98)]
    wrong = {
        "order": [boxes[1], boxes[0], boxes[2]],
        "stranger": [*boxes[:2], client_id(9) + boxes[2][16:]],
        "missing": boxes[:2],
        "itself": [boxes[0], CROOKED + boxes[1][16:], boxes[2]],
        "size": [*boxes, b"x"],
    }[change]
    sealed = sealed_by(federation[2], Stage.SHARE, federation.position, body, b"".join(wrong))
    assert aggregator.receive(Stage.SHARE, CROOKED, sealed)
    assert np.array_equal(finished(federation, aggregator).lanes, federation.sum_of([1, 3, 4]))


def test_11_a_signature_on_other_survivors_is_not_forwarded():
    federation = Federation(4)
    aggregator = until(federation, Stage.CONSISTENCY)
    body = aggregator.requests()[CROOKED].to_bytes()
    crooked = federation[2].member.key.sign("u3", bytes(32) + body)
    sealed = sealed_by(federation[2], Stage.CONSISTENCY, federation.position, body, crooked)
    assert aggregator.receive(Stage.CONSISTENCY, CROOKED, sealed)
    assert np.array_equal(finished(federation, aggregator).lanes, federation.sum_of([1, 2, 3, 4]))


def test_11_a_box_that_does_not_open_silences_its_receiver_and_no_one_else():
    """What the page lets a crooked client do: the victim refuses, down to min_survivors the sum goes on."""
    federation = Federation(4)
    aggregator = until(federation, Stage.SHARE)
    body = aggregator.requests()[CROOKED].to_bytes()
    reply = bytearray(federation[2].reply(Stage.SHARE, federation.position, body))
    reply[20] ^= 1
    aggregator.receive(
        Stage.SHARE, CROOKED, sealed_by(federation[2], Stage.SHARE, federation.position, body, bytes(reply))
    )
    assert np.array_equal(finished(federation, aggregator).lanes, federation.sum_of([2, 3, 4]))


def test_11_a_forged_envelope_changes_nothing_and_its_sender_is_waited_for():
    federation = Federation(4)
    aggregator = until(federation, Stage.MASK)
    body = aggregator.requests()[CROOKED].to_bytes()
    for forged in (b"", bytes(63), bytes(100), REFUSAL + bytes(64)):
        assert not aggregator.receive(Stage.MASK, CROOKED, forged)
    assert not aggregator.receive(Stage.MASK, CROOKED, federation[1].sealed(Stage.MASK, federation.position, body))
    assert CROOKED in aggregator.waiting


def test_11_a_reply_counts_once():
    federation = Federation(4)
    aggregator = until(federation, Stage.MASK)
    sealed = federation[2].sealed(Stage.MASK, federation.position, aggregator.requests()[CROOKED].to_bytes())
    assert aggregator.receive(Stage.MASK, CROOKED, sealed)
    assert not aggregator.receive(Stage.MASK, CROOKED, sealed)
    assert np.array_equal(finished(federation, aggregator).lanes, federation.sum_of([1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("asked", "threshold", "liars"),
    [(4, 3, (4,)), (10, 7, (2, 9)), (10, 7, (1, 5, 10)), (80, 67, (5, 30, 80)), (256, 171, tuple(range(20, 260, 24)))],
)
def test_11_every_liar_is_named_wherever_it_stands_and_no_honest_member(asked, threshold, liars):
    """The last has ten of 256. That a wrong share is overlooked has probability 2^-256."""
    secret, holders = hashlib.sha256(b"secret").digest(), [client_id(n) for n in range(1, asked + 1)]
    values = map(decode_share, split(secret, coefficients=list(range(1, threshold)), holders=asked))
    shares = dict(zip(holders, values, strict=True))
    for liar in liars:
        shares[client_id(liar)] += liar
    recovery = Recovery({holder: n for n, holder in enumerate(holders, start=1)}, threshold)
    for dealer in (client_id(1), client_id(2)):
        assert recovery.secret(dealer, shares, lambda candidate: candidate == secret) == secret
        assert {b.holder for b in recovery.blames if b.dealer == dealer} == {client_id(liar) for liar in liars}


@pytest.mark.parametrize("liars", [(9,), (2, 9), (1, 5, 10)])
def test_11_liars_are_named_for_every_secret_and_the_sum_is_right(liars):
    federation = Federation(10, kinds=dict.fromkeys(liars, ReturnsWrongShares))
    result = federation.play()
    assert np.array_equal(result.lanes, federation.sum_of(range(1, 11)))
    every = {Blame(dealer, client_id(liar)) for dealer in federation.ids for liar in liars}
    assert set(result.blames) == every
