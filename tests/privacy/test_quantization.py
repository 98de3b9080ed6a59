"""Truncation is toward zero and once; a client's integers never leave the ball."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedlearn.errors import ConfigError
from fedlearn.privacy.quantization import from_lanes, to_lanes, truncate, truncate_within

NASTY = st.sampled_from([0.0, -0.0, 5e-324, 1e-310, 0.1, 1e30, -1e30, 1.7e308, math.inf, -math.inf, math.nan])
STACKS = arrays(np.float64, array_shapes(min_dims=1, max_dims=2, max_side=9), elements=st.floats() | NASTY)
SCALES = st.sampled_from([1, 1 << 10, 1 << 20, Fraction(1 << 18) / Fraction("0.3"), Fraction(1, 3)])


def squares(row: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in row)


@given(vector=arrays(np.float64, 9, elements=st.floats(-1e4, 1e4)), scale=st.sampled_from([1, 1 << 10, 1 << 20]))
def test_truncation_is_exact_and_toward_zero_on_a_binary_grid(vector, scale):
    assert truncate(vector, scale).tolist() == [math.trunc(Fraction(value) * scale) for value in vector.tolist()]


@given(vector=arrays(np.float64, 9, elements=st.floats(-1e4, 1e4)), scale=SCALES)
def test_truncation_never_moves_away_from_zero(vector, scale):
    for value, integer in zip(vector.tolist(), truncate(vector, scale).tolist(), strict=True):
        product = Fraction(value) * scale
        assert abs(integer) <= abs(product) * (1 + Fraction(1, 2**51))
        assert integer == 0 or (integer > 0) == (product > 0)
        assert abs(product) - abs(integer) < 1 + abs(product) / 2**51


def test_known_answers():
    values = np.array([1.9999, -1.9999, 0.99, -0.99, 2.0, -2.0, 0.0])
    assert truncate(values, 1).tolist() == [1, -1, 0, 0, 2, -2, 0]
    assert truncate(values[:2], 1 << 10).tolist() == [2047, -2047]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_vector_that_was_not_clipped_is_our_bug(bad):
    with pytest.raises(AssertionError, match="finite and was clipped"):
        truncate(np.array([1.0, bad]), 1 << 20)


@given(stack=STACKS, scale=SCALES, sensitivity=st.integers(1, 2**31 - 1))
@example(stack=np.array([2.0**30, 1.0]), scale=1, sensitivity=2**30)
@example(stack=np.array([2.0**31 - 1] * 9), scale=1, sensitivity=2**31 - 1)
@settings(max_examples=250, deadline=None)
def test_r11_integers_of_a_client_never_leave_the_ball(stack, scale, sensitivity):
    integers = truncate_within(stack, scale=scale, sensitivity=sensitivity)
    assert integers.shape == stack.shape
    assert integers.dtype == np.int64
    assert all(squares(row) <= sensitivity**2 for row in np.atleast_2d(integers))


@given(
    stack=arrays(np.int64, (4, 3), elements=st.integers(-(2**30), 2**30)),
    excess=st.integers(-2, 2),
)
@settings(max_examples=150, deadline=None)
def test_r11_integers_next_to_the_sphere_never_leave_the_ball(stack, excess):
    sensitivity = max(1, math.isqrt(squares(stack[0])) + excess)
    assert all(squares(row) <= sensitivity**2 for row in truncate_within(stack, scale=1, sensitivity=sensitivity))


def test_r11_float_rounding_alone_would_leave_the_ball():
    """Delta^2 + 1 is not seen in float64: without the check in integers the vector would pass as it is."""
    vector = np.array([2.0**30, 1.0])
    assert np.linalg.norm(vector) == 2.0**30
    assert truncate_within(vector, scale=1, sensitivity=2**30).tolist() == [2**30 - 2**10, 0]


@given(stack=arrays(np.float64, (3, 5), elements=st.floats(-100, 100)))
def test_row_inside_the_ball_is_only_truncated(stack):
    np.testing.assert_array_equal(truncate_within(stack, scale=1 << 10, sensitivity=1 << 30), truncate(stack, 1 << 10))


@given(row=arrays(np.float64, 6, elements=st.floats(-1e30, 1e30)))
def test_no_entry_is_farther_from_zero_than_the_clipped_one_and_signs_stay(row):
    integers = truncate_within(row, scale=1 << 16, sensitivity=100_000)
    longest = max(math.hypot(*row.tolist()) * 2.0**16, 1e-300)
    assert (np.abs(integers) <= np.abs(row) * 2.0**16 * min(1.0, 100_000 / longest) * (1 + 1e-12)).all()
    assert (integers * np.sign(row) >= 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_r11_row_that_is_not_finite_in_grid_units_becomes_zeros(bad):
    integers = truncate_within(np.array([[1.0, 2.0], [bad, 2.0]]), scale=1 << 20, sensitivity=1 << 30)
    assert integers.tolist() == [[1 << 20, 2 << 20], [0, 0]]


def test_row_does_not_depend_on_the_other_rows():
    stack = np.random.default_rng(0).normal(size=(20, 333)) * 1e3
    together = truncate_within(stack, scale=1 << 10, sensitivity=12_345)
    alone = [truncate_within(row, scale=1 << 10, sensitivity=12_345) for row in stack]
    np.testing.assert_array_equal(together, np.stack(alone))


@given(values=arrays(np.int64, 20, elements=st.integers(-(2**31), 2**31 - 1)))
def test_lanes_hold_every_int32(values):
    lanes = to_lanes(values)
    assert lanes.dtype == np.uint32
    np.testing.assert_array_equal(from_lanes(lanes), values)


@given(values=arrays(np.int64, (2, 20), elements=st.integers(-(2**62), 2**62)))
def test_lanes_are_integers_modulo_2_to_the_32_and_add_like_them(values):
    assert to_lanes(values).tolist() == [[value % 2**32 for value in row] for row in values.tolist()]
    np.testing.assert_array_equal(to_lanes(values[0]) + to_lanes(values[1]), to_lanes(values[0] + values[1]))


@pytest.mark.parametrize(("scale", "sensitivity"), [(1, 0), (1, -5), (1, 2**31), (0, 5), (Fraction(-1, 2), 5)])
def test_grid_that_is_no_grid_is_refused(scale, sensitivity):
    with pytest.raises(ConfigError, match="expected"):
        truncate_within(np.ones(2), scale=scale, sensitivity=sensitivity)


def test_scale_that_is_no_scale_is_refused():
    with pytest.raises(ConfigError, match="scale is 0; expected a number above 0"):
        truncate(np.ones(2), 0)


def test_empty_stack_and_empty_vector_are_valid():
    assert truncate_within(np.zeros((0, 4)), scale=1, sensitivity=1).shape == (0, 4)
    assert truncate_within(np.zeros(0), scale=1, sensitivity=1).shape == (0,)
    assert truncate(np.zeros(0), 1).shape == (0,)
