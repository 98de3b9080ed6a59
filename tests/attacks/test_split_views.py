"""Attacks 1, 2, 4, 15 and 19: a server that tells different clients different things.

Where docs/threat-model.md says that it bites, the same attack is played against clients from which one check was taken
out, and must then recover the victim's vector: so the attack is known to bite, and the check to be what stops it.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from lying_server import LyingServer, ids, prepared
from small_federation import MODEL, Federation, client_id

from fedlearn.privacy.request import threshold_of
from fedlearn.secagg import stages
from fedlearn.secagg.masking import add_keystreams
from fedlearn.secagg.messages import REFUSAL, Advert, MaskedRequest, Stage
from fedlearn.secagg.participant import Participant
from fedlearn.secagg.transcript import CHECK_LANES, ContextFields

VICTIM = client_id(1)
FORGED = b"a model made to show one client's records"


class WithoutTheRuleOfOne(Participant):
    """Forgets that it answered stages 3 and 4."""

    _masked = None

    def answer(self, stage, position, body):
        if stage is Stage.CONSISTENCY:
            self._masked = self._masked or self._attempt.state
            self._attempt.state = self._masked
        if stage in (Stage.CONSISTENCY, Stage.UNMASK):
            self._attempt.digests.pop(stage, None)
            self._attempt.replies.pop(stage, None)
        return super().answer(stage, position, body)


class AcceptsSumsOfFive(Participant):
    """Takes five for min_survivors when it is shown U2."""

    def _begin(self, envelope, request):
        state = self._attempt.state
        small = replace(state.context.fields, min_survivors=5)
        self._attempt.state = replace(state, context=replace(state.context, fields=small))
        return super()._begin(envelope, request)


class Colluder(Participant):
    """Tells the server its mask seed."""

    mask_seed = b""

    def answer(self, stage, position, body):
        if stage is Stage.SHARE:
            self.mask_seed = self._attempt.state.mask_seed
        return super().answer(stage, position, body)


class Watched(Participant):
    """Shows the seed of its own mask to the test."""

    own_seed = b""

    def finish_masked(self, work, lanes):
        self.own_seed = work._opened.plus[0]
        return super().finish_masked(work, lanes)


class TakesAnyModel(Watched):
    """Does not compare the model with its hash."""

    def _begin(self, envelope, request):
        request = MaskedRequest(request.bitmap, request.boxes, request.model, self._attempt.state.context.model_hash)
        return super()._begin(envelope, request)


def survivors_twice(federation: Federation):
    """Attack 1: all clients but the victim sign it in, then, asked again, out. Both kinds of shares, and its reply."""
    server, masked = prepared(federation)
    others = [client for client in server.members if client != VICTIM]
    first = server.collect(others, server.members, server.members)
    second = server.collect(others, others, server.members)
    return server, masked[VICTIM], first, second


def test_1_a_victim_cannot_be_in_and_out_of_the_survivors():
    federation = Federation(4)
    server, _, first, second = survivors_twice(federation)
    assert len(first) == 3
    assert second == {}
    assert all("second, different request" in federation[n].reasons[0] for n in (2, 3, 4))
    assert server.secret(VICTIM, second) is None


def test_1_without_the_rule_of_one_its_vector_is_recovered():
    federation = Federation(4, kinds=dict.fromkeys(range(1, 5), WithoutTheRuleOfOne))
    server, reply, first, second = survivors_twice(federation)
    own = {"self_mask": server.secret(VICTIM, first), "seeds": {VICTIM: server.secret(VICTIM, second)}}
    assert np.array_equal(server.unmasked_alone(VICTIM, reply, server.members, **own), federation[1].vector)


def survivors_by_halves(federation: Federation):
    """Attack 2: half of ten clients are asked to sign the victim in, the other half out, each half honest."""
    server, masked = prepared(federation)
    with_victim = server.collect(ids(1, 2, 3, 4, 5), server.members, server.members)
    without = server.collect(ids(6, 7, 8, 9, 10), ids(*range(2, 11)), server.members)
    return server, masked[VICTIM], with_victim, without


def test_2_two_halves_never_stand_by_two_sets_of_survivors():
    federation = Federation(10, min_survivors=8)
    _, _, with_victim, without = survivors_by_halves(federation)
    assert with_victim == without == {}


def test_2_with_half_a_cohort_as_threshold_the_vector_is_recovered(monkeypatch):
    monkeypatch.setattr(ContextFields, "_check_thresholds", lambda *_: None)
    federation = Federation(10, threshold=5, min_survivors=8)
    server, reply, with_victim, without = survivors_by_halves(federation)
    own = {"self_mask": server.secret(VICTIM, with_victim), "seeds": {VICTIM: server.secret(VICTIM, without)}}
    assert np.array_equal(server.unmasked_alone(VICTIM, reply, server.members, **own), federation[1].vector)


def test_2_thresholds_leave_no_room_for_two_sets_of_survivors():
    for asked in range(3, 257):
        most_colluders = min(2 * threshold_of(asked) - asked - 1, asked - 2)
        assert 2 * threshold_of(asked) > asked + most_colluders


def test_4_another_model_for_one_client_is_refused():
    server, _ = prepared(Federation(4), until=Stage.MASK)
    assert server.mask(VICTIM, server.members, model=FORGED) == REFUSAL
    assert server.federation[1].contributions == 0


def test_4_that_check_stands_alone_without_it_the_sum_is_right():
    federation = Federation(4, kinds={1: TakesAnyModel, 2: Watched, 3: Watched, 4: Watched})
    server, _ = prepared(federation, until=Stage.MASK)
    assert np.array_equal(unmasked_sum(server, mask_all(server)), federation.sum_of([1, 2, 3, 4]))


def test_4_another_context_for_one_client_makes_its_advert_invalid():
    server = served_two_contexts(Federation(4))
    assert server.boxes == {}
    assert all("signed for this context" in server.federation[n].reasons[0] for n in (1, 2, 3, 4))


def test_4_without_that_check_boxes_do_not_open(monkeypatch):
    monkeypatch.setattr(Advert, "is_valid", lambda *_: True)
    server = served_two_contexts(Federation(4))
    assert len(server.boxes) == 4
    assert mask_all(server) == [REFUSAL] * 4


def test_4_with_constant_boxes_as_well_the_sum_is_noise(monkeypatch):
    take_box_binding_out(monkeypatch)
    federation = Federation(4, 64, kinds=dict.fromkeys(range(1, 5), Watched))
    server = served_two_contexts(federation)
    found = unmasked_sum(server, mask_all(server))
    assert (found != federation.sum_of([1, 2, 3, 4])).sum() > 60


def test_4_with_constant_mask_salts_as_well_the_sum_is_right(monkeypatch):
    take_box_binding_out(monkeypatch)
    pair_seed, self_seed = stages.pair_seed, stages.self_seed
    monkeypatch.setattr(stages, "pair_seed", lambda shared, _, **pair: pair_seed(shared, bytes(32), **pair))
    monkeypatch.setattr(stages, "self_seed", lambda secret, _, client: self_seed(secret, bytes(32), client))
    federation = Federation(4, 64, kinds=dict.fromkeys(range(1, 5), Watched))
    server = served_two_contexts(federation)
    assert np.array_equal(unmasked_sum(server, mask_all(server)), federation.sum_of([1, 2, 3, 4]))


def test_15_two_lists_of_survivors_give_never_both_shares_of_a_client():
    """What opens Flower's SecAgg+, in every way to show two lists to three clients of a cohort of four."""
    for views in product([True, False], repeat=3):
        federation = Federation(4)
        server, _ = prepared(federation)
        others, lists = ids(2, 3, 4), {True: server.members, False: ids(2, 3, 4)}
        signatures = {c: server.sign(c, lists[view]) for c, view in zip(others, views, strict=True)}
        given = [server.unmask(client, signatures, server.members) for client in others]
        assert sum(shares is not None for shares in given) in (0, 3)
        assert (given[0] is not None) == (len(set(views)) == 1)


def two_sums(federation: Federation, *, dropped: list[int], responders: list[int]):
    """Attack 19: the victim is shown U2 = {1, ..., 5}, all others the full one, where its partners then 'drop out'."""
    server, _ = prepared(federation, until=Stage.MASK)
    small = ids(1, 2, 3, 4, 5)
    reply = server.mask(VICTIM, small)
    for client in server.members[1:]:
        server.mask(client, server.members)
    survivors = [client for client in server.members if client not in ids(*dropped)]
    shares = server.collect(ids(*responders), survivors, server.members)
    return server, small, reply, shares


def test_19_twenty_clients_lose_a_victim_that_accepts_a_sum_of_five():
    federation = Federation(20, min_survivors=16, kinds={1: AcceptsSumsOfFive})
    server, small, reply, shares = two_sums(federation, dropped=[2, 3, 4, 5], responders=list(range(6, 21)))
    seeds = {partner: server.secret(partner, shares) for partner in ids(2, 3, 4, 5)}
    found = server.unmasked_alone(VICTIM, reply, small, self_mask=server.secret(VICTIM, shares), seeds=seeds)
    assert np.array_equal(found, federation[1].vector)


def test_19_ten_clients_and_two_colluders_lose_it_as_well():
    federation = Federation(10, min_survivors=8, kinds={1: AcceptsSumsOfFive, 2: Colluder, 3: Colluder})
    server, small, reply, shares = two_sums(federation, dropped=[4, 5], responders=[2, 3, 6, 7, 8, 9, 10])
    seeds = {partner: server.secret(partner, shares) for partner in ids(4, 5)}
    seeds |= {partner: federation.clients[partner].participant.mask_seed for partner in ids(2, 3)}
    found = server.unmasked_alone(VICTIM, reply, small, self_mask=server.secret(VICTIM, shares), seeds=seeds)
    assert np.array_equal(found, federation[1].vector)


@pytest.mark.parametrize("asked", [10, 20])
def test_19_a_victim_that_asks_for_min_survivors_keeps_it(asked):
    federation = Federation(asked, min_survivors=asked - asked // 5)
    server, _ = prepared(federation, until=Stage.MASK)
    assert server.mask(VICTIM, ids(1, 2, 3, 4, 5)) == REFUSAL
    assert federation[1].releases == 0


def test_19_no_division_of_twenty_clients_signs_in_two_sums():
    """However many of the 13 honest ones are shown the other sum: never t signatures for both, 7 colluders included."""
    for shown_another in range(14):
        assert min(shown_another, 13 - shown_another) + 7 < threshold_of(20)


def served_two_contexts(federation: Federation) -> LyingServer:
    """The victim's stage 0 names another model than everybody else's."""
    server = LyingServer(federation)
    server.advertise({VICTIM: federation.context(model=FORGED)})
    server.share()
    return server


def mask_all(server: LyingServer) -> list[bytes]:
    """The replies to stage 2, the victim's to the model that its context names."""
    models = {VICTIM: FORGED}
    return [server.mask(client, server.members, models.get(client, MODEL)) for client in server.members]


def take_box_binding_out(monkeypatch) -> None:
    """No check of adverts, and boxes bound to nothing."""
    box_key = stages.box_key
    monkeypatch.setattr(Advert, "is_valid", lambda *_: True)
    monkeypatch.setattr(stages, "box_associated", lambda *_: b"")
    monkeypatch.setattr(stages, "box_key", lambda shared, _, **sides: box_key(shared, bytes(32), **sides))


def unmasked_sum(server: LyingServer, masked: list[bytes]):
    """The sum less the own masks, whose seeds an omniscient test reads: the plain sum, if the pairs' masks cancel."""
    total = np.sum([np.frombuffer(reply, "<u4") for reply in masked], axis=0, dtype=np.uint32)
    seeds = [client.participant.own_seed for client in server.federation.clients.values()]
    add_keystreams(total, [], seeds)
    return total[:-CHECK_LANES]
