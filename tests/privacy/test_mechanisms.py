"""The five modes on the real grid: what a client sends, how far one unit moves it, and who adds the noise."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.crypto.keystream import stream_entropy
from fedlearn.privacy.calibration import plan
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.noise_multiplier import z_booked_millionths
from fedlearn.privacy.request import PrivacyRequest

DIMENSION = 40
BASE = {
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "rounds": 4,
    "spare_rounds": 0,
    "max_grad_norm": 0.3,
    "clipping_norm": 4.0,
    "sampling_probability": Fraction(1),
    "local_steps": 2,
    "planned_records": 1400,
    "population_size": 1000,
    "planned_cohort": 10,
    "min_survivors": 8,
    "max_colluders": 1,
    "max_participations": 4,
    "scale_bits": 14,
    "dimension": DIMENSION,
    "cohorts": "rotation",
    "masking": False,
}


def a_plan(mode, **changes):
    return plan(PrivacyRequest(**{**BASE, "mode": mode, **changes}))


def entropy_of(number):
    return stream_entropy(lambda size: number.to_bytes(size, "big"))


def norm(integers):
    return math.sqrt(sum(int(entry) ** 2 for entry in integers))


def some_vectors(seed, rows, length):
    directions = np.random.RandomState(seed).standard_normal((rows, DIMENSION))
    return length * directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.mark.parametrize("mode", MECHANISMS)
def test_a_row_is_bounded_by_the_clipping_norm_whatever_came(mode):
    planned = a_plan(mode)
    vectors = some_vectors(0, 6, 1.0) * np.array([[0.0], [1.0], [5.0], [1e30], [1e300], [1.0]])
    vectors[5, 3] = math.nan
    grid = MECHANISMS[mode].work.to_grid(vectors, planned)
    assert grid.dtype == np.int64
    assert all(norm(row) <= planned.clip_bound for row in grid)
    assert not grid[0].any()
    assert not grid[5].any()


@pytest.mark.parametrize("mode", MECHANISMS)
def test_a_row_does_not_depend_on_the_others(mode):
    vectors, planned, mechanism = some_vectors(1, 5, 9.0), a_plan(mode), MECHANISMS[mode]
    alone = np.concatenate([mechanism.work.to_grid(row[np.newaxis], planned) for row in vectors])
    np.testing.assert_array_equal(mechanism.work.to_grid(vectors, planned), alone)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.floats(0, 6), share=st.floats(0, 1), snap=st.booleans())
def test_one_record_moves_a_record_sum_by_at_most_the_booked_sensitivity(seed, length, share, snap):
    planned, mechanism = a_plan("record-distributed"), MECHANISMS["record-distributed"]
    scale = 2.0**planned.scale_bits
    before, record = some_vectors(seed, 2, 1.0) * np.array([[length], [share * 0.3]])
    if snap:  # every entry next to an integer boundary, so that a small step crosses it
        before = (np.trunc(before * scale) - np.sign(record) * 1e-6) / scale
    grid = mechanism.work.to_grid(np.stack([before, before + record]), planned)
    assert norm(grid[1] - grid[0]) <= planned.sensitivity


@pytest.mark.parametrize("mode", ["client-distributed", "client-central"])
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(width=64), min_size=DIMENSION, max_size=DIMENSION))
def test_emptying_one_client_moves_a_sum_by_at_most_the_booked_sensitivity(mode, values):
    planned, mechanism = a_plan(mode, delta=1e-4), MECHANISMS[mode]
    row = mechanism.work.to_grid(np.array([values]), planned)[0]
    assert sum(int(entry) ** 2 for entry in row) <= planned.sensitivity**2


@pytest.mark.parametrize("mode", ["client-distributed", "client-central", "none"])
@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(1, 10**9), min_size=3, max_size=3))
def test_r07_no_count_enters_so_no_weight_can_stretch_a_clients_part(mode, weights):
    planned, mechanism = a_plan(mode, delta=1e-4), MECHANISMS[mode]
    weighted = some_vectors(2, 3, 1.0) * np.array(weights, dtype=np.float64)[:, np.newaxis]
    grid = mechanism.work.to_grid(weighted, planned)
    assert max(sum(int(entry) ** 2 for entry in row) for row in grid) <= planned.sensitivity**2
    assert planned.divisor == planned.planned_cohort


def test_r07_r12_no_mode_takes_a_count_or_a_sensitivity_from_outside():
    for mechanism in MECHANISMS.values():
        assert list(inspect.signature(mechanism.work.to_grid).parameters) == ["vectors", "plan"]
        assert list(inspect.signature(mechanism.noise.share).parameters) == ["plan", "shape", "entropy"]
        for drawn in (mechanism.noise.of_sum, mechanism.noise.central):
            assert not {"noise_std", "dimension"} & set(inspect.signature(drawn).parameters)
    assert not {"sensitivity", "noise_multiplier", "noise_std", "num_examples"} & set(PrivacyRequest.__slots__)


@pytest.mark.parametrize("mode", ["record-distributed", "client-distributed"])
def test_r06_what_is_left_after_drop_outs_and_colluders_is_the_booked_variance(mode):
    for cohort, survivors, colluders in [(10, 8, 1), (3, 3, 1), (50, 40, 5), (250, 200, 25)]:
        planned = a_plan(mode, planned_cohort=cohort, min_survivors=survivors, max_colluders=colluders)
        left = (survivors - colluders) * planned.noise_std**2
        booked = Fraction(planned.noise_multiplier_millionths, 10**6) ** 2 * planned.sensitivity**2
        assert left - Fraction(1, 12) >= booked
        one_less = z_booked_millionths(
            planned.noise_std, shares=survivors - colluders - 1, sensitivity=planned.sensitivity
        )
        assert one_less < planned.noise_multiplier_millionths


@pytest.mark.parametrize("mode", ["record-distributed", "client-distributed"])
def test_shares_have_the_planned_variance_and_add_up(mode):
    """Seven shares of 4,000 entries: chi-square z-scores below 5; false alarms below 2e-6 in all."""
    planned = a_plan(mode, dimension=4000)
    shares = MECHANISMS[mode].noise.share(planned, (7, 4000), entropy_of(11)).astype(np.float64)
    for sample, variance in [(shares[0], planned.noise_std**2), (shares.sum(axis=0), 7 * planned.noise_std**2)]:
        z_score = ((sample**2).sum() / variance - 4000) / math.sqrt(2 * 4000)
        assert abs(z_score) < 5


@pytest.mark.parametrize("mode", ["record-distributed", "client-distributed"])
def test_a_stack_of_clients_draws_what_they_would_draw_one_by_one(mode):
    planned, mechanism = a_plan(mode), MECHANISMS[mode]
    together = mechanism.noise.share(planned, (3, DIMENSION), entropy_of(5))
    entropy = entropy_of(5)
    one_by_one = [mechanism.noise.share(planned, (1, DIMENSION), entropy)[0] for _ in range(3)]
    np.testing.assert_array_equal(together, np.stack(one_by_one))


def test_who_adds_noise_is_who_the_mode_says():
    shape = (2, DIMENSION)
    shares, central, steps = {}, {}, {}
    for mode, mechanism in MECHANISMS.items():
        planned = a_plan(mode)
        shares[mode] = bool(mechanism.noise.share(planned, shape, entropy_of(1)).any())
        central[mode] = bool(mechanism.noise.central(planned, entropy_of(1)).any())
        steps[mode] = planned.noise_std > 0 and not (shares[mode] or central[mode])
    assert [mode for mode in MECHANISMS if shares[mode]] == ["record-distributed", "client-distributed"]
    assert [mode for mode in MECHANISMS if central[mode]] == ["client-central"]
    assert [mode for mode in MECHANISMS if steps[mode]] == ["record-local"]


def test_names_codes_units_and_relations():
    assert {name: mechanism.code for name, mechanism in MECHANISMS.items()} == {
        "none": 0,
        "record-distributed": 1,
        "record-local": 2,
        "client-distributed": 3,
        "client-central": 4,
    }
    for name, mechanism in MECHANISMS.items():
        assert mechanism.name == name
        assert mechanism.private == (name != "none")
        relation = {PrivacyUnit.RECORD: "ADD_OR_REMOVE_ONE", PrivacyUnit.CLIENT: "REPLACE_SPECIAL", None: None}
        assert mechanism.neighboring_relation == relation[mechanism.privacy_unit]


def test_a_gradient_is_turned_downhill_and_an_update_is_not():
    assert MECHANISMS["record-distributed"].work.server_factor(16.0) == -16.0
    assert all(m.work.server_factor(16.0) == 1.0 for name, m in MECHANISMS.items() if name != "record-distributed")


def test_only_masked_shares_hold_against_the_server_and_local_noise_always_does():
    def claims(mode, masking):
        return any(
            "the server" in who for who in MECHANISMS[mode].noise.holds_against(max_colluders=1, masking=masking)
        )

    assert claims("record-distributed", masking=True)
    assert not claims("record-distributed", masking=False)
    assert claims("client-distributed", masking=True)
    assert not claims("client-distributed", masking=False)
    assert claims("record-local", masking=False)
    assert not claims("client-central", masking=True)
    assert not claims("none", masking=True)
