"""Masks add up and come off; check words tell a wrong one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import fixed_entropy, random_lanes

from fedlearn.crypto.keystream import SEGMENT_BYTES, Keystream
from fedlearn.secagg.masking import add_keystreams, check_words_hold, with_check_words
from fedlearn.secagg.transcript import check_seeds, pair_seed

SEGMENT = SEGMENT_BYTES // 4
SEEDS = [fixed_entropy(f"seed {n}")(40) for n in range(70)]


def expected(lanes, plus, minus):
    """By reading whole keystreams."""
    total = lanes.copy()
    for seeds, sign in ((plus, 1), (minus, -1)):
        for seed in seeds:
            mask = np.frombuffer(Keystream(seed).read(0, lanes.nbytes), "<u4")
            total = total + mask if sign > 0 else total - mask
    return total


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "size", [0, 1, 3, 32767, 32768, 32769, 65537, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 3]
)
def test_keystreams_are_added_and_subtracted_in_every_size(size, threads):
    lanes = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
    wanted = expected(lanes, SEEDS[:2], SEEDS[2:4])
    add_keystreams(lanes, SEEDS[:2], SEEDS[2:4], threads=threads)
    assert np.array_equal(lanes, wanted)


def test_many_keystreams_use_smaller_chunks_and_give_the_same():
    lanes = random_lanes("many", 70_000)
    wanted = expected(lanes, SEEDS[:40], SEEDS[40:])
    add_keystreams(lanes, SEEDS[:40], SEEDS[40:])
    assert np.array_equal(lanes, wanted)


@given(st.integers(0, 300), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3))
def test_what_was_added_comes_off(size, plus, minus, threads):
    lanes = random_lanes("x", size)
    masked = lanes.copy()
    add_keystreams(masked, SEEDS[:plus], SEEDS[10 : 10 + minus], threads=threads)
    add_keystreams(masked, SEEDS[10 : 10 + minus], SEEDS[:plus])
    assert np.array_equal(masked, lanes)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_check_words_of_vectors_add_up(numbers):
    vectors = [with_check_words(random_lanes(f"v{n}", 17), bytes(32)) for n in numbers]
    total = np.sum(vectors, axis=0, dtype=np.uint32)
    assert check_words_hold(total, bytes(32), len(numbers))
    assert not check_words_hold(total, bytes(32), len(numbers) + 1)
    assert not check_words_hold(total, b"\x01" * 32, len(numbers))


@pytest.mark.parametrize("lane", range(20))
def test_a_changed_lane_is_noticed(lane):
    """A change of 1 passes each sum only if its key is 0 mod 2^32."""
    total = with_check_words(random_lanes("v", 17), bytes(32))
    total[lane] += 1
    assert not check_words_hold(total, bytes(32), 1)


def test_check_words_use_the_whole_vector_across_chunks_and_segments():
    x = random_lanes("long", 70_000)
    x = np.concatenate([x] * 16)
    words = with_check_words(x, bytes(32))[-3:]
    keys = [np.frombuffer(Keystream(seed).read(0, x.nbytes), "<u4") for seed in check_seeds(bytes(32))]
    sums = [int((key.astype(object) * x.astype(object)).sum() % 2**32) for key in keys]
    assert words.tolist() == [1, *sums]


def test_masks_of_a_pair_cancel_only_under_one_transcript():
    """What one adds under c2 the other takes away under the same c2, and under no other."""
    shared, low, high = bytes(range(32)), (bytes(16), bytes(32)), (b"\x01" * 16, b"\x02" * 32)
    seeds = {c2: pair_seed(shared, c2, low=low, high=high) for c2 in (bytes(32), b"\x01" * 32)}
    for other, left in ((bytes(32), 0), (b"\x01" * 32, 64)):
        lanes = np.zeros(64, dtype=np.uint32)
        add_keystreams(lanes, [seeds[bytes(32)]], [seeds[other]])
        assert np.count_nonzero(lanes) == left  # by chance below 64: 2^-26
