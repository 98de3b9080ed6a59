"""The holder's policy: a coordinator can ask for less, never for more."""

import pytest

from fedlearn.agent.agreement import plan_for
from fedlearn.errors import RefusedError
from fedlearn.policy import Policy


@pytest.fixture
def policy(load_digits):
    config = load_digits()
    return Policy.for_simulation(config, plan_for(config, dimension=650, population_size=10))


def check(policy, config, *, dimension=650):
    policy.check(config, plan_for(config, dimension=dimension, population_size=10))


def test_a_simulations_policy_accepts_its_own_scenario(policy, load_digits):
    check(policy, load_digits())


@pytest.mark.parametrize(
    "tighter",
    ["privacy.target_epsilon=1", "privacy.delta=1e-6", "secure_aggregation.min_survivors=9", "run.rounds=5"],
)
def test_a_tighter_run_is_accepted(policy, load_digits, tighter):
    check(policy, load_digits(tighter))


@pytest.mark.parametrize(
    ("looser", "reason"),
    [
        ("privacy.target_epsilon=3.5", "epsilon"),
        ("privacy.delta=1e-4", "delta"),
        ("privacy.mode=none", "mode"),
        ("privacy.mode=record-local", "mode"),
        ("model.name=mlp", "model"),
        ("secure_aggregation.min_survivors=7", "min_survivors"),
    ],
)
def test_a_looser_run_is_refused_with_the_reason_for_the_holders_log(policy, load_digits, looser, reason):
    with pytest.raises(RefusedError, match=reason):
        check(policy, load_digits(looser, "privacy.planned_records=1000"))


def test_a_larger_model_is_refused(policy, load_digits):
    with pytest.raises(RefusedError, match="651 entries"):
        check(policy, load_digits(), dimension=651)


def test_the_other_unit_is_refused_whatever_its_epsilon(policy, load_digits):
    named = policy.model_copy(update={"modes": ("client-distributed",)})
    with pytest.raises(RefusedError, match="protects one record"):
        check(named, load_digits("privacy.mode=client-distributed", "secure_aggregation.scale_bits=16"))
