"""The sum is exact, whoever drops out where, and nothing is unmasked below the thresholds."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import MODEL, Federation, client_id

from fedlearn.crypto.keystream import SEGMENT_BYTES
from fedlearn.privacy.request import threshold_of
from fedlearn.secagg.aggregator import Aggregator, AttemptFailedError
from fedlearn.secagg.messages import Stage
from fedlearn.secagg.transcript import CHECK_LANES

SEGMENT_LANES = SEGMENT_BYTES // 4


@st.composite
def cohorts_with_dropouts(draw):
    """(asked, dimension, {stage: numbers lost there}) that leaves enough in every stage."""
    asked = draw(st.integers(3, 9))
    spare = asked - threshold_of(asked)
    lost = draw(st.lists(st.integers(1, asked), max_size=spare, unique=True))
    stages = draw(st.lists(st.sampled_from(list(Stage)), min_size=len(lost), max_size=len(lost)))
    where = {stage: [n for n, at in zip(lost, stages, strict=True) if at is stage] for stage in Stage}
    return asked, draw(st.sampled_from([0, 1, 2, 7, 33])), where


@settings(max_examples=60, deadline=None)
@given(cohorts_with_dropouts())
def test_sum_is_exact_whoever_drops_out_where(case):
    asked, dimension, lost = case
    federation = Federation(asked, dimension)
    result = federation.play(lost)
    gone = {n for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK) for n in lost[stage]}
    survivors = [n for n in range(1, asked + 1) if n not in gone]
    assert result.survivors == tuple(client_id(n) for n in survivors)
    assert np.array_equal(result.lanes, federation.sum_of(survivors))
    assert result.blames == ()


@pytest.mark.parametrize("dimension", [SEGMENT_LANES - CHECK_LANES - 1, SEGMENT_LANES - CHECK_LANES, SEGMENT_LANES])
def test_sum_is_exact_at_the_edges_of_a_segment(dimension):
    federation = Federation(4, dimension)
    assert np.array_equal(federation.play({Stage.MASK: [2]}).lanes, federation.sum_of([1, 3, 4]))


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 9), st.data())
def test_any_threshold_of_responders_unmasks(asked, data):
    federation = Federation(asked, 3)
    silent = data.draw(
        st.sets(st.integers(1, asked), min_size=asked - threshold_of(asked), max_size=asked - threshold_of(asked))
    )
    assert np.array_equal(federation.play({Stage.UNMASK: silent}).lanes, federation.sum_of(range(1, asked + 1)))


def test_changing_one_vector_changes_the_sum_by_as_much():
    federation, changed = Federation(4, 3), Federation(4, 3)
    changed[2].vector = changed[2].vector + np.array([1, 2**31, 0], dtype=np.uint32)
    assert (changed.play().lanes - federation.play().lanes).tolist() == [1, 2**31, 0]


def test_threads_change_nothing():
    sums = [Federation(3, SEGMENT_LANES * 2 + 5, threads=threads).play().lanes for threads in (1, 2)]
    assert np.array_equal(*sums)


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.MASK])
def test_below_min_survivors_nothing_is_asked_further(stage):
    federation = Federation(5, 3, min_survivors=4)
    with pytest.raises(AttemptFailedError, match="expected at least 4"):
        federation.play({stage: [1, 2]})


@pytest.mark.parametrize("stage", [Stage.CONSISTENCY, Stage.UNMASK])
def test_below_the_threshold_nothing_is_unmasked(stage):
    federation = Federation(5, 3)
    with pytest.raises(AttemptFailedError, match="expected at least 4"):
        federation.play({stage: [1, 2]})


def test_exactly_min_survivors_and_exactly_threshold_are_enough():
    federation = Federation(7, 3, min_survivors=6)
    result = federation.play({Stage.MASK: [4], Stage.UNMASK: [1]})
    assert np.array_equal(result.lanes, federation.sum_of([1, 2, 3, 5, 6, 7]))


def test_a_vector_was_asked_for_from_stage_two_on():
    federation = Federation(4, 3)
    aggregator = federation.aggregator()
    federation.advance(aggregator, Stage.SHARE)
    assert not aggregator.vectors_asked
    federation.advance(aggregator, Stage.MASK)
    assert aggregator.vectors_asked


@pytest.mark.slow  # half a minute: 131,000 signatures are verified
def test_sum_of_the_largest_cohort_is_exact():
    federation = Federation(256, 1)
    lost = {Stage.MASK: [17, 200], Stage.UNMASK: [1]}
    expected = federation.sum_of(n for n in range(1, 257) if n not in (17, 200))
    assert np.array_equal(federation.play(lost).lanes, expected)


def test_cohort_above_256_is_refused_with_the_reason():
    with pytest.raises(Exception, match="the cost grows with the square"):
        Federation(257, 1).aggregator()


def test_masked_vectors_are_not_the_vectors():
    federation = Federation(4, 64)
    aggregator = federation.aggregator()
    federation.advance(aggregator, Stage.MASK)
    for client, request in aggregator.requests().items():
        reply = federation.clients[client].reply(Stage.MASK, federation.position, request.to_bytes())
        lanes = np.frombuffer(reply, "<u4")[:-CHECK_LANES]
        assert (lanes != federation.clients[client].vector).sum() > 60


def test_a_session_goes_on_from_round_to_round():
    federation = Federation(4, 5)
    for round_number in (1, 2, 3):
        federation.position = type(federation.position)(federation.position.session, round_number, 0)
        assert np.array_equal(federation.play().lanes, federation.sum_of([1, 2, 3, 4]))


def test_model_is_one_object_for_all_requests():
    federation = Federation(4, 5)
    aggregator = federation.aggregator()
    federation.advance(aggregator, Stage.MASK)
    assert all(request.tail is MODEL for request in aggregator.requests().values())
    assert aggregator.context.model_hash == hashlib.sha256(MODEL).digest()
    assert isinstance(aggregator, Aggregator)
