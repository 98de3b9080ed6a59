"""`audit mechanism` passes on the real parties, and fails on every party that protects less than it says.

An honest mechanism fails one of these audits with a probability of at most 1e-5.
"""

import os
from dataclasses import replace

import numpy as np
import pytest

from fedlearn.audit.mechanism import audit_mechanism
from fedlearn.audit.parties import Parties
from fedlearn.audit.setting import agree_on, setting_of
from fedlearn.config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import ConfigError


@pytest.fixture
def audit(load_digits):
    """Audits the digits scenario with other parties, other settings."""

    def run(samples, parties=Parties, *overrides, masked=False):
        config = load_digits(*overrides)
        return audit_mechanism(config, samples=samples, confidence=0.99999, parties=parties, masked=masked)

    return run


class LessNoise(Parties):
    """Whoever adds noise adds `factor` of it."""

    factor = 1.0

    def __init__(self, agreement, entropy):
        plan = agreement.plan
        kinds = {name: round(self.factor * getattr(plan, name)) for name in ("noise_std", "central_noise_std")}
        super().__init__(replace(agreement, plan=replace(plan, **kinds)), entropy)


class NineTenths(LessNoise):
    factor = 0.9


class OverRootTwo(LessNoise):
    factor = 1 / np.sqrt(2)


class NoNoise(Parties):
    def __init__(self, agreement, entropy):
        super().__init__(replace(agreement, mechanism=without_noise(agreement.mechanism)), entropy)


def without_noise(mechanism):
    """The same mechanism, of a party that forgets its noise."""

    class Silent(type(mechanism)):
        noise_by = "nobody"

    return Silent()


class SizedForDropOutsAlone(Parties):
    """Its share would do if the colluder did not know its own."""

    def __init__(self, agreement, entropy):
        plan = agreement.plan
        values = agreement.config.model_dump(exclude_none=True)
        values["secure_aggregation"]["min_survivors"] += 1
        config = RunConfig.from_values(values, place="test")
        short = agree_on(config, plan.dimension, entropy).plan
        assert short.honest_survivors == plan.honest_survivors + 1
        super().__init__(replace(agreement, plan=short), entropy)


class NoRecordClip(Parties):
    """Sums gradients as long as they are."""

    def __init__(self, agreement, entropy):
        values = agreement.config.model_dump(exclude_none=True)
        values["privacy"]["max_grad_norm"] *= 100
        values["secure_aggregation"]["scale_bits"] = 12  # of no importance to the work
        config = RunConfig.from_values(values, place="test")
        loose = agree_on(config, agreement.plan.dimension, entropy)
        super().__init__(replace(agreement, work=loose.work), entropy)


class NoClientClip(Parties):
    """Sends its update as long as it is."""

    def __init__(self, agreement, entropy):
        longer = replace(agreement.plan, clip_bound=3 * agreement.plan.clip_bound)
        super().__init__(replace(agreement, plan=longer), entropy)


class SameNoiseAgain(Parties):
    """Draws the noise of `times` releases from one and the same randomness."""

    times = 2

    def __init__(self, agreement, entropy):
        super().__init__(agreement, entropy)
        self.made = 0

    def contribute(self, clients):
        if self.made % self.times == 0:
            self.seed = os.urandom(40)
        self.made += 1
        self.entropy = stream_entropy(lambda _: self.seed)
        return super().contribute(clients)


class AlwaysTheSameNoise(SameNoiseAgain):
    times = 10**9


class OneRandomnessForAll(Parties):
    """All clients draw the same noise: who knows its own share knows everybody's."""

    def contribute(self, clients):
        seed, rows = os.urandom(40), []
        for client in clients:
            self.entropy = stream_entropy(lambda _: seed)
            rows.append(super().contribute([client])[0])
        return np.stack(rows)


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


@pytest.mark.parametrize(
    ("parties", "samples"),
    [
        (OverRootTwo, 20_000),
        (NoRecordClip, 2_000),
        (NoNoise, 2_000),
        (SameNoiseAgain, 2_000),
        (AlwaysTheSameNoise, 2_000),
        (OneRandomnessForAll, 2_000),
        pytest.param(NineTenths, 60_000, marks=pytest.mark.lengthy),
        pytest.param(SizedForDropOutsAlone, 200_000, marks=pytest.mark.lengthy),
    ],
)
def test_parties_that_protect_less_are_caught(audit, parties, samples):
    told = audit(samples, parties)
    assert told.epsilon_lower > told.epsilon_claimed
    assert not told.passed


@pytest.mark.parametrize("parties", [NoClientClip, NoNoise, SameNoiseAgain])
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
