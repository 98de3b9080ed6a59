"""`audit membership`: members are found without privacy, and with it no more of them than the guarantee allows."""

import numpy as np
import pytest
from dishonest_parties import NoNoise

from fedlearn.audit.membership import audit_membership
from fedlearn.audit.parties import Parties
from fedlearn.audit.shadows import subject_of
from fedlearn.errors import ConfigError

# Three clients and 64 models are quick; at epsilon 1 so few models show what is missing. In 14 audits the control found
# .55 of the members or more at a false-positive rate of .01; with 16 models it failed once in 25.
MODELS = 64
QUICK = (
    "data.population_size=3",
    "secure_aggregation.planned_cohort=3",
    "secure_aggregation.min_survivors=3",
    "secure_aggregation.max_colluders=1",
    "secure_aggregation.scale_bits=14",
    "privacy.clipping_norm=30",
    "privacy.target_epsilon=1",
    "run.rounds=16",
    "run.spare_rounds=0",
)


@pytest.mark.slow
@pytest.mark.parametrize(("parties", "passes"), [(Parties, True), (NoNoise, False)])
def test_members_are_found_where_there_is_no_noise(load_digits, parties, passes):
    told = audit_membership(load_digits(*QUICK), models=MODELS, parties=parties)
    assert told.control_passed
    assert told.passed is passes
    for rate in told.rates:
        assert rate.ceiling == pytest.approx(np.exp(told.epsilon_claimed) * rate.false_positive_rate, abs=1e-4)
        assert rate.at_least <= rate.true_positive_rate
        assert rate.control_true_positive_rate > 5 * rate.false_positive_rate
    assert told.samples == MODELS * told.canaries


def test_canaries_have_a_wrong_label_and_all_else_is_as_it_was(load_digits):
    subject, right = subject_of(load_digits()), subject_of(load_digits("data.partition=shards"))
    assert np.array_equal(subject.records.labels, right.records.labels)
    assert len(set(subject.canaries.tolist())) == 64


def test_a_mode_that_protects_clients_is_refused(load_digits):
    with pytest.raises(ConfigError, match="protects whole clients"):
        audit_membership(load_digits("privacy.mode=client-central"))


def test_too_few_models_are_refused(load_digits):
    with pytest.raises(ConfigError, match="expected at least 8"):
        audit_membership(load_digits(), models=4)
