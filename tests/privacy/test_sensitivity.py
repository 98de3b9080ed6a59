"""The booked sensitivity holds in every mode, for vectors that an adversary chose.

Record sums: adding or removing one record moves the integers by at most ceil(s*C*(1 + 2^-10)) + ceil(sqrt(d)); by more
than s*C it can. Clients: replacing one by zeros moves them by at most floor(s*R).
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from fedlearn.privacy.clipping import clip_by_l2_norm
from fedlearn.privacy.quantization import truncate, truncate_within

NASTY = [0.0, 5e-324, 1e-30, 1e30, -1e30, 1e300, math.inf, -math.inf, math.nan]
Grid = Callable[[np.ndarray], np.ndarray]


def length(integers: np.ndarray) -> float:
    return math.sqrt(sum(int(value) ** 2 for value in integers.reshape(-1)))


def booked(scaled_norm: Fraction, dimension: int) -> int:
    """Sensitivity of a truncated record sum (docs/specification/privacy.md 3.2); `scaled_norm` is s*C."""
    return math.ceil(scaled_norm * (1 + Fraction(1, 2**10))) + math.isqrt(dimension - 1) + 1


def sum_on_grid(
    records: np.ndarray, *, max_grad_norm: float, clipping_norm: float, scale: int | Fraction
) -> np.ndarray:
    """What a record mode truncates: the sum of clipped records, projected onto the ball of radius R."""
    clipped = clip_by_l2_norm(records, max_grad_norm)
    return truncate(clip_by_l2_norm(clipped.sum(axis=0), clipping_norm), scale)


def largest_move(records: np.ndarray, grid: Grid) -> float:
    """How far removing one record moves the integers, over all records; adding it is the same step back."""
    whole = grid(records)
    return max(length(whole - grid(np.delete(records, i, axis=0))) for i in range(len(records)))


@st.composite
def record_stacks(draw: st.DrawFn, *, scale: float, max_grad_norm: float) -> np.ndarray:
    """A few records: arbitrary ones, nasty numbers, and a last one that carries a sum across integer boundaries.

    In the adversarial half every entry of the last record has the same size, a little more than a whole number of grid
    steps, and the others sum to just below an integer in each entry.
    """
    d = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 6))
    records = generator.normal(size=(count, d)) * 10.0 ** generator.integers(-6, 3, size=(count, 1))
    if draw(st.booleans()):
        records[generator.random(records.shape) < 0.1] = draw(st.sampled_from(NASTY))
    if draw(st.booleans()):
        last = np.full(d, max_grad_norm / math.sqrt(d)) * draw(st.sampled_from([1.0, 0.999, 1.001]))
        below = draw(st.sampled_from([1e-9, 1e-3, 0.05, 0.5]))
        # Small enough that no record is clipped: the others sum to k - below, with k of either sign.
        parts = generator.multinomial(1, [1 / 3] * 3, size=d) @ np.array([1, 2, 3]) - below
        signs = generator.choice([-1.0, 1.0], size=d)
        records = np.stack([parts * signs / scale, last * signs])
    return records


SCALE, MAX_GRAD_NORM = 1 << 10, 0.25
SUMS = record_stacks(scale=SCALE, max_grad_norm=MAX_GRAD_NORM)


@given(records=SUMS, clipping_norm=st.sampled_from([0.05, 0.25, 0.6, 100.0]))
@settings(max_examples=250, deadline=None)
def test_r07_one_record_moves_a_record_sum_by_at_most_the_booked_sensitivity(records, clipping_norm):
    def grid(rows: np.ndarray) -> np.ndarray:
        return sum_on_grid(rows, max_grad_norm=MAX_GRAD_NORM, clipping_norm=clipping_norm, scale=SCALE)

    assert largest_move(records, grid) <= booked(SCALE * Fraction(MAX_GRAD_NORM), records.shape[1])


def test_r07_the_same_property_with_s_times_c_fails():
    """Hypothesis finds a record that moves the integers by more than ceil(s*C): truncation is not 1-Lipschitz."""

    def grid(rows: np.ndarray) -> np.ndarray:
        return sum_on_grid(rows, max_grad_norm=MAX_GRAD_NORM, clipping_norm=100.0, scale=SCALE)

    bound = math.ceil(SCALE * Fraction(MAX_GRAD_NORM))
    config = settings(
        database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), max_examples=2000
    )
    counterexample = find(SUMS, lambda records: largest_move(records, grid) > bound, settings=config)
    assert bound < largest_move(counterexample, grid) <= booked(Fraction(bound), counterexample.shape[1])


def test_r07_known_record_moves_the_default_size_by_more_than_s_times_c():
    """At d = 26,010, s = 2^16, C = 0.1 one record moves the integers by more than 6,600; s*C is 6,553.6."""
    d, scale, max_grad_norm = 26_010, 1 << 16, 0.1
    step = math.floor(max_grad_norm * scale / math.sqrt(d)) + 0.05  # grid units of the record in most entries
    record = np.full(d, step / scale)
    others = np.full(d, (1 - 0.01) / scale)  # just below an integer boundary
    scaled_norm = Fraction("0.1") * scale
    assert np.linalg.norm(record) <= max_grad_norm

    def grid(rows: np.ndarray) -> np.ndarray:
        return sum_on_grid(rows, max_grad_norm=max_grad_norm, clipping_norm=10.0, scale=scale)

    move = largest_move(np.stack([others, record]), grid)
    assert math.ceil(scaled_norm) + 40 < move <= booked(scaled_norm, d)


@pytest.mark.parametrize("norm", ["0.3", "1.0", "0.07", "123.4"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_r07_one_record_moves_a_local_step_by_at_most_the_booked_sensitivity(norm, data):
    """record-local: a grid of 2^-18 * C, no projection."""
    scale = 2**18 / Fraction(norm)
    records = data.draw(record_stacks(scale=float(scale), max_grad_norm=float(norm)))

    def grid(rows: np.ndarray) -> np.ndarray:
        return truncate(clip_by_l2_norm(rows, float(norm)).sum(axis=0), scale)

    assert largest_move(records, grid) <= booked(Fraction(2**18), records.shape[1])


@given(
    records=record_stacks(scale=1.0, max_grad_norm=1e4),
    clipping_norm=st.sampled_from(["0.02", "0.1", "3.7", "1000.0"]),
    scale_bits=st.integers(6, 20),
)
@settings(max_examples=250, deadline=None)
def test_r07_a_client_moves_the_sum_of_clients_by_at_most_s_times_r(records, clipping_norm, scale_bits):
    """Each row is one client's update; its neighbor is the row of zeros. Exact: no slack for rounding."""
    scale = 1 << scale_bits
    sensitivity = math.floor(scale * Fraction(clipping_norm))
    total = truncate_within(records, scale=scale, sensitivity=sensitivity).sum(axis=0)
    for i in range(len(records)):
        without = records.copy()
        without[i] = 0.0
        moved = total - truncate_within(without, scale=scale, sensitivity=sensitivity).sum(axis=0)
        assert sum(int(value) ** 2 for value in moved) <= sensitivity**2
