"""Clipping bounds every row and shows nothing of a broken one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedlearn.errors import ConfigError
from fedlearn.privacy.clipping import clip_by_l2_norm

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
NASTY = st.sampled_from(
    [0.0, -0.0, 5e-324, -1e-310, 1e-200, 1e30, -1e30, 1e200, 1.7e308, math.inf, -math.inf, math.nan]
)
STACKS = arrays(np.float64, array_shapes(min_dims=1, max_dims=2, max_side=7), elements=ANY_FLOAT | NASTY)
NORMS = st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e9, 1e300])


def norm(row: np.ndarray) -> float:
    return math.hypot(*row.tolist())  # correct to an ulp at every size


@given(stack=STACKS, clipping_norm=NORMS)
@settings(max_examples=200, deadline=None)
def test_r11_no_row_is_longer_than_the_bound(stack, clipping_norm):
    clipped = clip_by_l2_norm(stack, clipping_norm)
    assert clipped.shape == stack.shape
    assert clipped.dtype == np.float64
    assert all(norm(row) <= clipping_norm * (1 + 1e-14) for row in np.atleast_2d(clipped))


@given(stack=STACKS, clipping_norm=NORMS)
@settings(max_examples=200, deadline=None)
def test_r11_row_inside_is_unchanged_and_row_outside_is_scaled_to_the_bound(stack, clipping_norm):
    for row, clipped in zip(np.atleast_2d(stack), np.atleast_2d(clip_by_l2_norm(stack, clipping_norm)), strict=True):
        if not np.isfinite(row).all():
            assert not clipped.any()
        elif norm(row) <= clipping_norm * (1 - 1e-14):
            np.testing.assert_array_equal(clipped, row)
        elif norm(row) >= clipping_norm * (1 + 1e-14) and math.isfinite(norm(row)):
            assert norm(clipped) == pytest.approx(clipping_norm, rel=1e-13)
            tiny = 1e-13 * clipping_norm
            np.testing.assert_allclose(clipped, row / norm(row) * clipping_norm, rtol=1e-12, atol=tiny)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_r11_row_that_is_not_finite_becomes_zeros_and_the_others_stay(bad):
    stack = np.array([[0.5, 0.5], [0.5, bad], [3.0, 4.0]])
    np.testing.assert_allclose(clip_by_l2_norm(stack, 1.0), [[0.5, 0.5], [0, 0], [0.6, 0.8]], rtol=1e-15)


def test_r11_zero_update_stays_zero():
    assert not clip_by_l2_norm(np.zeros((3, 5)), 0.1).any()


def test_r11_integer_buffer_is_clipped_like_floats():
    np.testing.assert_allclose(clip_by_l2_norm(np.array([3, 4]), 1.0), [0.6, 0.8], rtol=1e-15)


def test_r11_norm_that_overflows_is_clipped_to_the_bound():
    clipped = clip_by_l2_norm(np.full(10_000, 1.7e308), 2.0)
    np.testing.assert_allclose(clipped, 0.02, rtol=1e-12)


def test_row_does_not_depend_on_the_other_rows():
    stack = np.random.default_rng(0).normal(size=(37, 1001))
    together = clip_by_l2_norm(stack, 3.0)
    np.testing.assert_array_equal(together, np.stack([clip_by_l2_norm(row, 3.0) for row in stack]))
    np.testing.assert_array_equal(together[5:6], clip_by_l2_norm(stack[5:6], 3.0))


def test_input_is_not_written():
    vector = np.array([3.0, 4.0])
    clip_by_l2_norm(vector, 1.0)[:] = 7
    assert vector.tolist() == [3.0, 4.0]


def test_empty_stack_and_empty_vector_are_valid():
    assert clip_by_l2_norm(np.zeros((0, 4)), 1.0).shape == (0, 4)
    assert clip_by_l2_norm(np.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_bound_that_is_no_bound_is_refused(bound):
    with pytest.raises(ConfigError, match=r"clipping_norm is .* expected a finite number above 0"):
        clip_by_l2_norm(np.ones(2), bound)
