"""How often an honest system fails the checks of its releases: as seldom as they say.

With `FAILURE` for each of `TRIALS` at most 7.5 failures are expected; more than 23 come by chance below 2e-6.
"""

import numpy as np
import pytest

from fedlearn.audit.release_checks import coin_checks, noise_checks, reach_check

FAILURE, TRIALS, MOST = 0.05, 150, 23

pytestmark = pytest.mark.lengthy

RANDOM = np.random.default_rng(7)


def failures(checks):
    """Of so many trials of `checks`, how many have one that is not passed."""
    return sum(any(not check.passed for check in checks()) for _ in range(TRIALS))


def blurred_coins(blur):
    copies = np.array([30, 30, 29, 29])
    taken = RANDOM.binomial(copies, 0.5, (20, len(copies)))
    return coin_checks(taken + RANDOM.normal(0, 1, taken.shape) * blur, copies, blur, failure=FAILURE)


@pytest.mark.parametrize("shape", [(17, 60), (64, 12)])
def test_independent_noise_seldom_fails(shape):
    found = failures(lambda: noise_checks(RANDOM.normal(size=shape), failure=FAILURE))
    assert 0 < found <= MOST


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_independent_coins_seldom_fail(blur):
    assert failures(lambda: blurred_coins(blur)) <= MOST


def test_a_canary_of_the_full_bound_seldom_fails():
    def moved():
        along = RANDOM.normal(0, 0.1, (8, 4)) + np.array([1.0, 0, 0, 0])
        return [reach_check(np.linalg.norm(along, axis=1), 0.1, 4, failure=FAILURE)]

    assert failures(moved) <= MOST


def test_the_false_alarms_of_all_checks_add_up_to_what_is_asked_for():
    checks = noise_checks(RANDOM.normal(size=(20, 30)), failure=FAILURE)
    assert sum(check.false_alarm_rate for check in checks) == pytest.approx(FAILURE)
    assert sum(check.false_alarm_rate for check in blurred_coins(1.0)) == pytest.approx(FAILURE)
