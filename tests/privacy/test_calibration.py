"""`plan`: known answers, the guarantee it states, and every refusal as one sentence."""

import json
import math
import time
from fractions import Fraction

import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from fedlearn.errors import ConfigError
from fedlearn.privacy.accounting import Event, epsilon_at_order, epsilon_of
from fedlearn.privacy.calibration import epsilon_after, guarantees_after, plan
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.noise_multiplier import least_integer, least_noise_std, z_booked_millionths
from fedlearn.privacy.request import PrivacyRequest

DIGITS = {
    "mode": "record-distributed",
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "rounds": 30,
    "spare_rounds": 2,
    "max_grad_norm": 0.3,
    "clipping_norm": 10.0,
    "sampling_probability": Fraction(1),
    "local_steps": None,
    "planned_records": 1400,
    "population_size": 10,
    "planned_cohort": 10,
    "min_survivors": 8,
    "max_colluders": 1,
    "max_participations": 32,
    "scale_bits": 20,
    "dimension": 650,
    "cohorts": "rotation",
    "masking": False,
}
SILOS = {
    "max_grad_norm": 0.1,
    "clipping_norm": 50.0,
    "planned_records": 60000,
    "spare_rounds": 0,
    "max_participations": 200,
    "scale_bits": 16,
    "dimension": 39690,
}
DEVICES = {
    "mode": "client-distributed",
    "target_epsilon": 8.0,
    "delta": 1e-4,
    "rounds": 40,
    "spare_rounds": 2,
    "clipping_norm": 0.02,
    "max_grad_norm": None,
    "planned_records": None,
    "population_size": 1000,
    "planned_cohort": 250,
    "min_survivors": 200,
    "max_colluders": 25,
    "max_participations": 11,
    "dimension": 8340,
}
POISSON = {
    **DEVICES,
    "mode": "client-central",
    "rounds": 50,
    "spare_rounds": 0,
    "clipping_norm": 0.1,
    "planned_cohort": 100,
    "min_survivors": 80,
    "max_colluders": None,
    "max_participations": 50,
    "cohorts": "poisson",
}
LOCAL = {
    **SILOS,
    "mode": "record-local",
    "rounds": 60,
    "sampling_probability": Fraction(1, 3),
    "local_steps": 1,
    "max_colluders": None,
}


def a_plan(*groups, **changes):
    arguments = dict(DIGITS)
    for group in (*groups, changes):
        arguments |= group
    return plan(PrivacyRequest(**arguments))


def test_digits_is_planned_as_computed_by_hand():
    planned = a_plan()
    scale = 2**20
    sensitivity = math.ceil(Fraction(scale * 3, 10) * Fraction(1025, 1024)) + math.isqrt(649) + 1
    assert planned.sensitivity == sensitivity == 314906
    assert planned.clip_bound == 10 * scale
    assert planned.honest_survivors == 7
    assert planned.threshold == 7
    assert planned.releases == 32
    assert planned.divisor == 1400
    assert planned.noise_std == 1005390
    assert planned.noise_multiplier_millionths == math.isqrt(
        10**12 * (12 * 7 * planned.noise_std**2 - 1) // (12 * sensitivity**2)
    )
    assert 8447 <= planned.noise_multiplier_millionths / 1000 < 8447.1
    assert planned.guarantee is not None
    assert planned.guarantee.privacy_unit is PrivacyUnit.RECORD


@pytest.mark.parametrize("group", [{}, {"scale_bits": 11}, DEVICES, {**SILOS, "rounds": 200}])
def test_the_noise_multiplier_is_the_least_thousandth_that_keeps_the_target(group):
    planned = a_plan(group)
    thousandths = planned.noise_multiplier_millionths // 1000
    delta, target = planned.guarantee.delta, planned.target_epsilon

    def epsilon(k):
        composed = SelfComposedDpEvent(GaussianDpEvent(k / 1000), planned.releases)
        return RdpAccountant().compose(composed).get_epsilon(delta)

    least = next(k for k in range(thousandths - 20, thousandths + 1) if epsilon(k) <= target)
    at = {"shares": planned.honest_survivors, "sensitivity": planned.sensitivity}
    assert planned.noise_std == least_noise_std(least, **at)
    assert z_booked_millionths(planned.noise_std, **at) >= 1000 * least
    assert z_booked_millionths(planned.noise_std - 1, **at) < 1000 * least


@pytest.mark.parametrize("group", [LOCAL, POISSON])
def test_a_sampled_mode_takes_the_least_thousandth_of_all_orders(group):
    planned = a_plan(group)
    event, delta, target = planned.event, planned.guarantee.delta, planned.target_epsilon

    def epsilon(k):
        gaussian = GaussianDpEvent(k / 1000)
        sampled = PoissonSampledDpEvent(float(event.sampling_probability), gaussian)
        return RdpAccountant().compose(SelfComposedDpEvent(sampled, planned.releases)).get_epsilon(delta)

    thousandths = planned.noise_multiplier_millionths // 1000
    assert epsilon(thousandths) <= target < epsilon(thousandths - 1)


@pytest.mark.parametrize("sensitivity", [1, 7, 1000, 314906, 2**31 - 1])
@pytest.mark.parametrize("shares", [1, 2, 7, 175])
def test_least_noise_std_is_the_least(sensitivity, shares):
    for thousandths in (1, 999, 8447, 255000):
        noise_std = least_noise_std(thousandths, shares=shares, sensitivity=sensitivity)
        at = {"shares": shares, "sensitivity": sensitivity}
        assert z_booked_millionths(noise_std, **at) >= 1000 * thousandths
        assert noise_std == 1 or z_booked_millionths(noise_std - 1, **at) < 1000 * thousandths


def test_z_booked_known_answer():
    # 10^12 * (12*7*1000^2 - 1) / (12*500^2) = 2.79999996...e13, whose root is 5291502.6
    assert z_booked_millionths(1000, shares=7, sensitivity=500) == 5291502


@pytest.mark.parametrize("least", [1, 2, 3, 999, 1000, 1001, 12345, 10**8])
@pytest.mark.parametrize("start", [1, 1000, 5000])
def test_galloping_finds_the_least_integer(least, start):
    assert least_integer(lambda k: k >= least, start) == least


@pytest.mark.parametrize(
    ("changes", "z"),
    [
        ({**SILOS, "rounds": 100}, 14.93),
        ({**SILOS, "rounds": 200}, 21.12),
        ({**SILOS, "rounds": 100, "target_epsilon": 1.0}, 40.45),
        ({**SILOS, "rounds": 200, "target_epsilon": 1.0}, 57.21),
        ({**DEVICES, "max_participations": 10, "spare_rounds": 0}, 1.84),
        ({**DEVICES, "max_participations": 5, "spare_rounds": 0, "rounds": 20}, 1.30),
        (DEVICES, 1.930),
    ],
)
def test_noise_multipliers_of_the_accuracy_tables(changes, z):
    assert a_plan(changes).noise_multiplier == pytest.approx(z, abs=0.005)


def test_what_happens_if_masking_fails_is_nine_point_three():
    guarantee = a_plan(rounds=20, spare_rounds=0).guarantee
    assert guarantee.epsilon == pytest.approx(3.0, abs=0.001)
    assert guarantee.epsilon_if_masking_fails == pytest.approx(9.26, abs=0.01)


@pytest.mark.parametrize("group", [{}, DEVICES, LOCAL, POISSON, {**SILOS, "sampling_probability": Fraction(1, 10)}])
def test_the_guarantee_is_dp_accountings_for_the_planned_events(group):
    planned = a_plan(group)
    event = Event.from_bytes(planned.event.to_bytes())
    one = GaussianDpEvent(event.noise_multiplier)
    if event.sampling_probability < 1:
        one = PoissonSampledDpEvent(float(event.sampling_probability), one)
    composed = SelfComposedDpEvent(one, event.count * planned.releases)
    theirs = RdpAccountant().compose(composed).get_epsilon(planned.guarantee.delta)
    assert planned.guarantee.epsilon == pytest.approx(theirs, rel=1e-9)
    assert planned.guarantee.epsilon <= planned.target_epsilon
    assert planned.guarantee.epsilon_estimate < planned.guarantee.epsilon


def test_local_noise_is_booked_for_every_step_and_drawn_on_its_own_grid():
    one, two = a_plan(LOCAL), a_plan(LOCAL, local_steps=2)
    assert two.event.count == 2
    assert two.noise_multiplier > one.noise_multiplier
    assert one.sensitivity == math.ceil(2**18 * Fraction(1025, 1024)) + 200
    assert one.planned_batch == 2000
    assert one.divisor == 10


def test_r05_a_rotating_cohort_is_never_booked_as_poisson():
    for group in (DEVICES, {**POISSON, "cohorts": "rotation", "max_participations": 5}):
        planned = a_plan(group)
        assert planned.event.sampling_probability == 1
        assert planned.further_guarantees == ()


def test_r05_a_poisson_cohort_has_two_guarantees_and_the_ledger_counts_the_dear_one():
    planned = a_plan(POISSON)
    amplified, counted = planned.guarantees
    assert amplified.epsilon <= 8.0
    assert amplified.holds_against == ("those who see only the models",)
    assert planned.event.sampling_probability == Fraction(1, 10)
    assert planned.event.eta > 0
    assert counted.weak
    assert planned.ledger_event.sampling_probability == 1
    assert planned.ledger_event.eta == 0
    assert planned.ledger_guarantee is counted
    assert counted.epsilon == epsilon_of([(planned.ledger_event, 50)], delta=1e-4, epsilon_ceiling=8.0)


@pytest.mark.parametrize("group", [{}, DEVICES, LOCAL, POISSON])
def test_at_the_ledgers_order_the_planned_releases_cost_what_the_plan_says(group):
    planned = a_plan(group)
    guarantee = planned.ledger_guarantee
    at = {"delta": guarantee.delta, "epsilon_ceiling": planned.target_epsilon}
    events = [(planned.ledger_event, planned.releases)]
    assert epsilon_at_order(events, order=planned.ledger_order, **at) == guarantee.epsilon


def test_r15_divisors_are_public_constants():
    assert a_plan(sampling_probability=Fraction(1, 2)).divisor == 700
    assert a_plan(min_survivors=9).divisor == a_plan().divisor
    assert a_plan(DEVICES).divisor == 250
    assert a_plan(mode="none").divisor == 10


def test_max_participations_bounds_the_releases():
    assert a_plan(DEVICES).releases == 11
    assert a_plan(DEVICES, max_participations=10**6).releases == 42
    assert a_plan(DEVICES).noise_multiplier < a_plan(DEVICES, max_participations=12).noise_multiplier


def test_mode_none_has_no_noise_and_no_guarantee():
    unused = ("target_epsilon", "delta", "max_grad_norm", "sampling_probability", "planned_records", "local_steps")
    planned = a_plan(dict.fromkeys((*unused, "max_colluders", "max_participations")), mode="none")
    assert planned.guarantee is None
    assert planned.event is None
    assert (planned.noise_multiplier_millionths, planned.noise_std) == (0, 0)
    assert planned.sensitivity == planned.clip_bound
    assert any("NOT PRIVATE" in warning for warning in planned.warnings)


@pytest.mark.parametrize("mode", ["record-distributed", "record-local", "client-distributed", "client-central"])
def test_a_mode_plans_with_only_the_keys_that_it_uses(mode):
    unused = {
        "record-distributed": ("local_steps",),
        "record-local": ("max_colluders",),
        "client-distributed": ("max_grad_norm", "sampling_probability", "planned_records", "local_steps"),
        "client-central": ("max_grad_norm", "sampling_probability", "planned_records", "local_steps", "max_colluders"),
    }
    arguments = {"mode": mode, "local_steps": 1, "scale_bits": 16, **dict.fromkeys(unused[mode])}
    assert a_plan(arguments).guarantee.epsilon <= 3.0


def test_a_plan_is_pure_and_cached():
    assert a_plan() is a_plan()
    assert a_plan(max_grad_norm=0.3) == a_plan()


def test_a_plan_is_quick():
    start = time.process_time()
    a_plan(rounds=31, max_participations=33)
    assert time.process_time() - start < 0.5


def test_the_plan_as_json_is_plain():
    for group in ({}, POISSON, {"mode": "none"}):
        values = a_plan(group).as_dict()
        assert json.loads(json.dumps(values)) == values
        assert {"noise_multiplier", "noise_std", "sensitivity", "divisor", "releases", "event", "guarantee"} <= set(
            values
        )


def test_a_finished_run_is_recounted_from_what_it_booked():
    planned = a_plan()
    (after,) = guarantees_after(planned, 20)
    assert after.epsilon == epsilon_after(planned, 20)
    assert after.epsilon == epsilon_of([(planned.event, 20)], delta=1e-5, epsilon_ceiling=3.0)
    assert after.epsilon < planned.guarantee.epsilon
    assert after.epsilon_if_masking_fails < planned.guarantee.epsilon_if_masking_fails
    assert guarantees_after(planned, planned.releases) == planned.guarantees
    assert guarantees_after(a_plan(mode="none"), 5) == ()
    assert epsilon_after(a_plan(mode="none"), 5) is None
    assert epsilon_after(planned, 0) == 0


def test_replacing_a_record_costs_what_half_the_multiplier_costs():
    planned = a_plan()
    composed = SelfComposedDpEvent(GaussianDpEvent(planned.noise_multiplier / 2), 32)
    theirs = RdpAccountant().compose(composed).get_epsilon(1e-5)
    assert planned.epsilon_replace_one == pytest.approx(theirs, rel=1e-5)
    assert a_plan(LOCAL).epsilon_replace_one is None


def test_masking_decides_whether_the_guarantee_claims_the_server():
    off, on = a_plan(), a_plan(masking=True)
    assert not any("server" in who for who in off.guarantee.holds_against)
    assert any("masking is off" in warning for warning in off.warnings)
    assert on.guarantee.holds_against[0] == "the server and up to 1 roster member"
    assert not any("masking is off" in warning for warning in on.warnings)
    assert on.guarantee.epsilon == off.guarantee.epsilon


def test_a_weak_guarantee_and_loud_noise_are_warned_of():
    assert any("weak" in warning for warning in a_plan(target_epsilon=11.0).warnings)
    loud = a_plan(SILOS, rounds=200, target_epsilon=1.0)
    assert loud.noise_to_signal == pytest.approx(
        loud.noise_std * math.sqrt(10 * 39690) / (2**16 * min(60000 * 0.1, 10 * 50.0)), rel=1e-9
    )
    assert any("the noise of a round" in warning for warning in loud.warnings)
    assert not any("the noise of a round" in warning for warning in a_plan().warnings)


def test_the_largest_scale_is_one_that_passes_while_the_next_is_refused():
    largest = a_plan(clipping_norm=500.0, scale_bits=12).largest_scale_bits
    planned = a_plan(clipping_norm=500.0, scale_bits=largest)
    assert 10 * (planned.clip_bound + 12 * planned.noise_std) < 2**31
    with pytest.raises(ConfigError, match=f"expected at most {largest}: .*lower scale_bits"):
        a_plan(clipping_norm=500.0, scale_bits=largest + 1)


def test_noise_counts_in_what_must_fit_into_lanes():
    bits = a_plan(target_epsilon=0.05, clipping_norm=1.0, scale_bits=14).largest_scale_bits
    planned = a_plan(target_epsilon=0.05, clipping_norm=1.0, scale_bits=bits)
    doubled = 2 * planned.noise_std
    assert 10 * (2**bits + 12 * planned.noise_std) < 2**31
    assert 10 * 2 ** (bits + 1) < 2**30  # the vectors alone would fit
    assert 10 * (2 ** (bits + 1) + 12 * doubled) > 2**31


def test_the_square_root_of_the_dimension_is_at_most_five_percent_of_the_clip():
    # 0.05 * 2^11 * 1.0 = 102.4 = sqrt(10485.76)
    assert a_plan(max_grad_norm=1.0, scale_bits=11, dimension=10485).dimension == 10485
    with pytest.raises(ConfigError, match="raise scale_bits"):
        a_plan(max_grad_norm=1.0, scale_bits=11, dimension=10486)


def test_bounds_are_the_floors_of_exact_decimals():
    assert a_plan(clipping_norm=0.3, mode="none").clip_bound == 3 * 2**20 // 10
    assert a_plan(clipping_norm=0.9999999999999999, mode="none").clip_bound == 2**20 - 1


CLIENT = {**DEVICES, "masking": True}
REFUSALS = [
    ("privacy.mode", {"mode": "local"}),
    ("privacy.delta .* 1/planned_records", {"delta": 1e-3}),
    ("privacy.delta .* 1/population_size", {**DEVICES, "delta": 2e-3}),
    ("privacy.delta", {"delta": None}),
    ("privacy.target_epsilon", {"target_epsilon": None}),
    ("privacy.target_epsilon", {"target_epsilon": math.inf}),
    ("privacy.target_epsilon", {"target_epsilon": -1.0}),
    ("privacy.max_grad_norm", {"max_grad_norm": None}),
    ("privacy.clipping_norm", {"clipping_norm": math.nan}),
    ("privacy.planned_records", {"planned_records": None}),
    ("privacy.sampling_probability", {"sampling_probability": None}),
    ("privacy.sampling_probability", {"sampling_probability": Fraction(3, 2)}),
    ("privacy.sampling_probability", {"sampling_probability": Fraction(1, 2**32)}),
    ("training.local_steps", {**LOCAL, "local_steps": None}),
    ("run.rounds", {"rounds": 0}),
    ("planned_cohort is 11.*population", {"planned_cohort": 11}),
    ("min_survivors is 11", {"min_survivors": 11}),
    ("min_survivors is 6.* = 7", {"min_survivors": 6}),
    ("min_survivors is 6.* = 7", {"min_survivors": 6, "mode": "none", "masking": True}),
    ("max_colluders is 0.*at least 1", {"max_colluders": 0}),
    ("max_colluders is missing", {"max_colluders": None}),
    ("max_colluders is missing", {**LOCAL, "masking": True}),
    ("max_colluders is 4.*at most 3", {"max_colluders": 4}),
    ("min_survivors - max_colluders is 1", {"planned_cohort": 2, "min_survivors": 2}),
    ("planned_cohort is 2.*3 to 256", {"planned_cohort": 2, "min_survivors": 2, "masking": True}),
    ("planned_cohort is 300.*3 to 256", {**CLIENT, "planned_cohort": 300, "max_participations": 13}),
    ("max_participations is 31.*at least 32", {"max_participations": 31}),
    ("max_participations is 10.*at least 11", {**DEVICES, "max_participations": 10}),
    ("max_participations is 49.*Poisson", {**POISSON, "max_participations": 49}),
    ("max_participations", {"max_participations": None}),
    ("scale_bits is 3.*sqrt.dimension.*raise scale_bits", {"scale_bits": 3}),
    ("scale_bits is 21", {"scale_bits": 21}),
    ("clipping_norm 0.001 is below one", {"clipping_norm": 0.001, "scale_bits": 9, "mode": "none"}),
    ("scale_bits is 20; expected at most", {"clipping_norm": 500.0}),
    ("lower clipping_norm", {"clipping_norm": 1e12}),
    ("at least 64; raise scale_bits", {**DEVICES, "scale_bits": 13}),
    ("noise of a step", {**LOCAL, "target_epsilon": 0.01, "sampling_probability": Fraction(1), "rounds": 200}),
    ('cohorts is "poisson"', {"cohorts": "poisson"}),
    ('cohorts is "poisson"', {**DEVICES, "cohorts": "poisson"}),
    ('cohorts is "poisson" with masking', {**POISSON, "masking": True, "max_colluders": 1}),
    ('cohorts is "all"', {"cohorts": "all"}),
    ("a tenth of delta", {**LOCAL, "mode": "record-distributed", "max_colluders": 1, "scale_bits": 16, "delta": 1e-17}),
    ("number of the model's parameters", {"dimension": 0}),
]


@pytest.mark.parametrize(("words", "changes"), REFUSALS)
def test_what_cannot_be_is_refused_in_one_sentence(words, changes):
    with pytest.raises(ConfigError, match=words) as refused:
        a_plan(changes)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 330
    assert not sentence.endswith(".")
