"""The statistic of audits: never above what is true, and near to it; and what an attacker knows besides is used."""

import numpy as np
import pytest

from fedlearn.audit.bounds import Seen, at_least, at_most, epsilon_lower
from fedlearn.privacy.accounting import gaussian_epsilon

DELTA, CONFIDENCE = 1e-5, 0.99999
GENERATOR = np.random.default_rng(0)


def bound(present, absent):
    return epsilon_lower(present, absent, delta=DELTA, confidence=CONFIDENCE)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.0])
def test_a_gaussian_is_bounded_from_below_and_nearly_reached(multiplier):
    noise = GENERATOR.normal(0, multiplier, (2, 100_000))
    true = gaussian_epsilon(multiplier, DELTA)
    assert 0.8 * true < bound(Seen.of(noise[0] + 1), Seen.of(noise[1])) < true


def test_nothing_is_proven_where_nothing_differs():
    noise = GENERATOR.normal(0, 1, (2, 10_000))
    assert bound(Seen.of(noise[0]), Seen.of(noise[1])) < 0.1


def test_the_bound_is_above_the_truth_no_more_often_than_stated():
    """60 bounds at a confidence of 90 %: more than 20 above the truth have a probability below 1e-6."""
    above = 0
    for _ in range(60):
        noise = GENERATOR.normal(0, 1, (2, 1000))
        sides = Seen.of(noise[0] + 1), Seen.of(noise[1])
        above += epsilon_lower(*sides, delta=DELTA, confidence=0.9) > gaussian_epsilon(1.0, DELTA)
    assert above <= 20


def test_noise_that_is_known_is_subtracted():
    noise = GENERATOR.normal(0, 1, (2, 2000))
    group = np.arange(2000) % 2
    known = np.where(group, noise, GENERATOR.normal(0, 1, (2, 2000)))[:, :, None]  # in every other sample alone
    present, absent = Seen(noise[0] + 1, known[0], group), Seen(noise[1], known[1], group)
    assert bound(present, absent) > gaussian_epsilon(1.0, DELTA)


def test_what_tells_nothing_is_left_alone():
    noise, known = GENERATOR.normal(0, 1, (2, 100_000)), GENERATOR.normal(0, 1, (2, 100_000, 3))
    group = np.zeros(100_000, dtype=np.int64)
    sides = [(Seen(noise[0] + 1, known[0], group), Seen(noise[1], known[1], group))]
    sides += [(Seen.of(noise[0] + 1), Seen.of(noise[1]))]
    assert bound(*sides[0]) == bound(*sides[1])


def test_rates_are_those_of_clopper_and_pearson():
    assert at_most(0, 10, failure=0.05) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert at_least(10, 10, failure=0.05) == pytest.approx(0.05 ** (1 / 10))
    assert (at_most(10, 10, failure=0.05), at_least(0, 10, failure=0.05)) == (1.0, 0.0)
