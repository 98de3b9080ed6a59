"""Every privacy mode, attacked on its real path: one release with z = 1, seen by the worst adversary that it allows.

The statistic is the output in the direction of a canary of the largest norm that one unit may have, and the bound that
of `audit.bounds`. A mechanism that is as noisy as it says fails this with probability below 1e-5 a test. With 40,000
samples a share that was too small went unseen now and then: hence 200,000.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from dishonest_parties import LargerTarget

from fedlearn.audit.bounds import Seen, epsilon_lower
from fedlearn.audit.mechanism import audit_mechanism
from fedlearn.audit.parties import Parties
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.privacy.accounting import gaussian_epsilon
from fedlearn.privacy.calibration import plan
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import from_lanes
from fedlearn.privacy.request import PrivacyRequest
from fedlearn.round.contribution import Contributor, contribute

DELTA = 1e-5
CONFIDENCE = 0.99999
SAMPLES = 200_000
PRIVATE = [name for name, mechanism in MECHANISMS.items() if mechanism.private]
SHARED = [name for name, mechanism in MECHANISMS.items() if mechanism.noise.in_shares]


def plan_for(mode, **changes):
    arguments = {
        "mode": mode,
        "target_epsilon": 4.731,
        "delta": DELTA,
        "rounds": 1,
        "spare_rounds": 0,
        "max_grad_norm": 0.3,
        "clipping_norm": 10.0,
        "sampling_probability": Fraction(1),
        "local_steps": 1,
        "planned_records": 1400,
        "population_size": 10,
        "planned_cohort": 10,
        "min_survivors": 8,
        "max_colluders": 1,
        "max_participations": 1,
        "scale_bits": 12,
        "dimension": 1,
        "cohorts": "rotation",
        "masking": False,
    }
    return plan(PrivacyRequest(**{**arguments, **changes}))


def lower_bound(with_canary, without):
    """The epsilon that these samples prove, at `CONFIDENCE`."""
    return epsilon_lower(Seen.of(with_canary), Seen.of(without), delta=DELTA, confidence=CONFIDENCE)


def worst_sums(planned, canary, *, survivors=7):
    """What a server sees that drops P - M clients and knows K shares: sums of h = 7 contributions, (SAMPLES,).

    Each entry of one long contribution stands for a release of its own; the canary is added as the grid has it.
    """
    mechanism = MECHANISMS[planned.mode]
    lanes = contribute(
        np.zeros(SAMPLES),
        [Contributor(None, ())] * survivors,
        work=lambda weights, client: weights,
        mechanism=mechanism,
        plan=planned,
        entropy=stream_entropy(),
    )
    on_grid = mechanism.work.to_grid(np.array([[canary]]), planned)[0, 0]
    return from_lanes(lanes.sum(axis=0, dtype=np.uint32)).astype(float) + on_grid


def canary_of(planned):
    return 0.3 if planned.mode == "record-distributed" else 10.0


@pytest.mark.parametrize("mode", SHARED)
def test_a_sum_of_the_honest_survivors_is_as_noisy_as_booked(mode):
    planned = plan_for(mode)
    bound = lower_bound(worst_sums(planned, canary_of(planned)), worst_sums(planned, 0.0))
    claimed = gaussian_epsilon(planned.noise_multiplier, DELTA)
    assert 0.5 * claimed < bound <= claimed


@pytest.mark.parametrize("mode", SHARED)
def test_noise_times_nine_tenths_is_caught(mode):
    planned = plan_for(mode)
    weaker = replace(planned, noise_std=round(0.9 * planned.noise_std))
    bound = lower_bound(worst_sums(weaker, canary_of(planned)), worst_sums(weaker, 0.0))
    assert bound > gaussian_epsilon(planned.noise_multiplier, DELTA)


@pytest.mark.parametrize("mode", SHARED)
def test_a_share_sized_for_fewer_missing_clients_is_caught(mode):
    planned = plan_for(mode)  # noise for 8 of 10, while 2 drop out and 2 of the others collude: 6 shares are left
    assumed = plan_for(mode, min_survivors=9, max_colluders=1)
    bound = lower_bound(worst_sums(assumed, canary_of(planned), survivors=6), worst_sums(assumed, 0.0, survivors=6))
    assert bound > gaussian_epsilon(planned.noise_multiplier, DELTA)


@pytest.mark.parametrize(("mode", "factor"), [(mode, 3.0) for mode in SHARED])
def test_a_client_that_forgets_to_clip_is_caught(mode, factor):
    planned = plan_for(mode)
    if mode == "record-distributed":  # a record sum that is clipped to R alone
        with_canary = worst_sums(planned, factor * 0.3)
    else:
        with_canary = worst_sums(replace(planned, clip_bound=3 * planned.clip_bound), factor * 10.0)
    assert lower_bound(with_canary, worst_sums(planned, 0.0)) > gaussian_epsilon(planned.noise_multiplier, DELTA)


@pytest.mark.lengthy
@pytest.mark.parametrize("mode", PRIVATE)
@pytest.mark.parametrize(("parties", "passes"), [(Parties, True), (LargerTarget, False)])
def test_an_audit_of_the_real_path_passes_and_less_noise_is_caught(mode, parties, passes):
    config = RunConfig.load("digits", {"privacy.mode": mode})
    told = audit_mechanism(config, samples=4_000, confidence=CONFIDENCE, parties=parties, masked=False, engine=False)
    assert told.passed is passes
    assert told.control_passed
    assert told.tightness > 0.4


@pytest.mark.parametrize("mode", MECHANISMS)
def test_what_leaves_is_integers_that_a_sum_of_32_bits_holds(mode):
    planned = plan_for(mode, scale_bits=12)
    vectors = np.array([[np.nan], [1e300], [-0.2], [0.0]])
    grid = MECHANISMS[mode].work.to_grid(vectors, planned)
    assert grid.dtype == np.int64
    assert np.abs(grid).max() <= planned.clip_bound
    assert grid[0, 0] == 0


@pytest.mark.parametrize("mode", MECHANISMS)
def test_the_accountant_knows_its_event_or_there_is_no_guarantee(mode):
    planned = plan_for(mode)
    if mode == "none":
        assert planned.event is None
        assert planned.guarantees == ()
        return
    assert planned.event is not None
    assert planned.guarantee is not None
    assert planned.guarantee.epsilon <= 4.731
    assert planned.noise_multiplier == pytest.approx(1.0, abs=0.01)
