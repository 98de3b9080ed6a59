"""`audit mechanism` passes on the real parties, and fails on every party that protects less than it says.

An honest mechanism fails one of these audits with a probability of at most 1e-5.
"""

import pytest
from dishonest_parties import (
    AlwaysTheSameNoise,
    NineTenths,
    NoClientClip,
    NoNoise,
    NoRecordClip,
    OneRandomnessForAll,
    OverRootTwo,
    SameNoiseTwice,
    SizedForDropOutsAlone,
)

from fedlearn.audit.mechanism import audit_mechanism
from fedlearn.audit.parties import Parties
from fedlearn.audit.setting import setting_of
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import ConfigError


@pytest.fixture
def audit(load_digits):
    """Audits the digits scenario with other parties, other settings."""

    def run(samples, parties=Parties, *overrides, masked=False):
        config, confidence = load_digits(*overrides), 0.99999 if parties is Parties else 0.999
        return audit_mechanism(
            config, samples=samples, confidence=confidence, parties=parties, masked=masked, engine=False
        )

    return run


def test_the_real_parties_pass_and_are_nearly_caught(audit):
    told = audit(20_000)
    assert told.passed
    assert told.control_passed
    assert 0.5 < told.tightness <= 1
    assert told.epsilon_claimed == pytest.approx(4.377, abs=0.002)
    assert told.epsilon_booked == pytest.approx(4.729, abs=0.002)
    assert (told.honest, told.colluders, told.lost) == (7, 1, 2)
    assert told.samples >= 20_000


@pytest.mark.slow
def test_all_samples_prove_nine_tenths_of_the_claim(audit):
    told = audit(200_000)
    assert told.passed
    assert 0.9 < told.tightness <= 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("parties", "samples"),
    [
        (OverRootTwo, 20_000),
        (NoRecordClip, 2_000),
        (NoNoise, 2_000),
        (SameNoiseTwice, 2_000),
        (AlwaysTheSameNoise, 2_000),
        (OneRandomnessForAll, 2_000),
        pytest.param(NineTenths, 120_000, marks=pytest.mark.slow),
        pytest.param(SizedForDropOutsAlone, 150_000, marks=pytest.mark.slow),
    ],
)
def test_parties_that_protect_less_are_caught(audit, parties, samples):
    told = audit(samples, parties)
    assert told.epsilon_lower > told.epsilon_claimed
    assert not told.passed


@pytest.mark.parametrize("parties", [NoClientClip, NoNoise, SameNoiseTwice])
def test_parties_of_a_client_mode_that_protect_less_are_caught(audit, parties):
    told = audit(1_000, parties, "privacy.mode=client-distributed")
    assert told.epsilon_lower > told.epsilon_claimed


def test_a_server_without_noise_is_caught(audit):
    assert not audit(1_000, NoNoise, "privacy.mode=client-central").passed


def test_masked_sums_are_the_plain_sums_bit_for_bit(audit):
    told = audit(1_000, masked=True)
    assert told.masked_releases == told.releases
    assert told.masked_sums_equal
    assert told.passed


def test_the_setting_is_the_scenarios_with_one_release_at_a_multiplier_of_one(load_digits):
    config = load_digits()
    setting = setting_of(config, entropy=stream_entropy())
    plan, audited = setting.agreement.plan, setting.config
    assert plan.noise_multiplier == pytest.approx(1.0, abs=1e-4)
    assert (plan.releases, plan.attempts) == (1, 1)
    assert plan.dimension in (648, 650)
    for key in ("max_grad_norm", "clipping_norm", "delta", "mode"):
        assert getattr(audited.privacy, key) == getattr(config.privacy, key)
    for key in ("planned_cohort", "min_survivors", "max_colluders", "scale_bits"):
        assert getattr(audited.secure_aggregation, key) == getattr(config.secure_aggregation, key)


def test_a_run_that_claims_nothing_is_refused(audit):
    with pytest.raises(ConfigError, match="claims nothing"):
        audit(1_000, Parties, "privacy.mode=none")
