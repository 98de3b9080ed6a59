"""Every shipped scenario: it loads, its plan passes, it says what it must reach."""

import re

import pytest

import fedlearn
from fedlearn.host.shipped import scenario_names, scenario_path
from fedlearn.round.agreement import plan_for

# Parameters of each scenario's model, so that a plan needs no data.
DIMENSIONS = {
    "breast_cancer": 62,
    "digits": 650,
    "fashion_cross_device": 8340,
    "fashion_poisson": 8340,
    "fashion_silos": 39700,
    "fashion_silos_local": 39700,
    "heart_hospitals": 60,
    "million_clients": 650,
}


def planned(name, *overrides):
    config = fedlearn.RunConfig.load(name, overrides)
    size = config.data.population_size or 4
    return plan_for(config, dimension=DIMENSIONS[name], population_size=size)


@pytest.mark.parametrize("name", scenario_names())
def test_its_plan_passes_with_and_without_privacy(name):
    plan = planned(name)
    assert plan.guarantee is not None
    assert plan.guarantee.epsilon <= plan.target_epsilon
    assert planned(name, "privacy.mode=none", "secure_aggregation.cohorts=rotation").guarantees == ()


@pytest.mark.parametrize("name", scenario_names())
def test_its_header_describes_it_and_states_its_bar(name):
    text = scenario_path(name).read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: ")
    assert re.search(r"^# expect: accuracy >= [0-9.]+ mean, >= [0-9.]+ min$", text, re.MULTILINE)


@pytest.mark.parametrize("name", scenario_names())
def test_it_allows_for_drop_outs_and_colluders_by_the_rule_or_says_why(name):
    plan = planned(name)
    if name == "heart_hospitals":
        assert "M = 3 of 4" in scenario_path(name).read_text(encoding="utf-8")
    else:
        assert plan.min_survivors == plan.planned_cohort - plan.planned_cohort // 5
    assert plan.max_colluders in (None, max(1, plan.planned_cohort // 10))


@pytest.mark.parametrize("name", scenario_names())
def test_it_is_masked_where_its_cohort_is_small_enough(name):
    config = fedlearn.RunConfig.load(name)
    assert config.secure_aggregation.masking == (config.secure_aggregation.planned_cohort <= 20)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "least"),
    [pytest.param("breast_cancer", 0.90, marks=pytest.mark.slow), ("heart_hospitals", 0.74), ("digits", 0.90)],
)
def test_a_quick_one_reaches_nearly_its_bar(name, least, tmp_path):
    # The margins are more than five standard deviations of the runs measured: below 1e-6 a run by chance.
    result = fedlearn.simulate(fedlearn.RunConfig.load(name), output=tmp_path / "run")
    assert result.accuracy >= least
