"""What an honest coordinator certifies is accepted, whatever the plan: small epsilons above all."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedlearn.certificate.build import Evidence, certify
from fedlearn.certificate.verify import verify_certificate
from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError
from fedlearn.model.layout import Layout
from fedlearn.privacy.calibration import check_noise, plan
from fedlearn.privacy.request import PrivacyRequest

LAYOUT = Layout(("1.weight", "1.bias"), ((10, 64), (10,)))
MODEL = save({"1.weight": np.zeros((10, 64), np.float32), "1.bias": np.zeros(10, np.float32)})
KEY = SigningKey(bytes(32))


def _digits(*overrides):
    return RunConfig.load("digits", list(overrides))


def _planned(*, rounds, epsilon, mode="record-distributed", probability="1"):
    config = _digits(
        f"run.rounds={rounds}",
        "run.spare_rounds=1",
        f"privacy.max_participations={rounds + 1}",
        f"privacy.target_epsilon={epsilon!r}",
        f"privacy.mode={mode}",
        f"privacy.sampling_probability={probability}",
        "privacy.planned_records=1000",
        "secure_aggregation.scale_bits=12",
        "secure_aggregation.planned_cohort=4",
        "secure_aggregation.min_survivors=3",
        "data.population_size=4",
    )
    from fedlearn.round.agreement import plan_for

    return config, plan_for(config, dimension=650, population_size=4)


def _verification(config, planned, rounds):
    noise_std = planned.noise_std
    event = planned.event.as_dict()
    line = {"attempt": 0, "asked": 4, "survivors": 4, "aborted": False, "event": event}
    evidence = Evidence(
        kind="deployment",
        session="00" * 16,
        started="2026-12-01T00:00:00+00:00",
        ended="2026-12-01T00:00:01+00:00",
        purpose=None,
        config=config.to_bytes(),
        population_size=4,
        noise="shares" if planned.noise_std else "clients",
        noise_std=noise_std,
        layout=LAYOUT,
        model_file=MODEL,
        attempts=[{**line, "round": n, "transcript": os.urandom(32).hex()} for n in range(1, rounds + 1)],
        head=None,
        entries=None,
        attestations=(),
        roster_hash=bytes(32),
        accuracy=None,
        loss=None,
        audits=(),
        versions={},
    )
    return verify_certificate(certify(evidence, KEY), MODEL)


@pytest.mark.parametrize("epsilon", [3.0, 0.5, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05])
@pytest.mark.parametrize("rounds", [1, 8])
def test_an_honest_certificate_is_accepted_at_small_epsilons(epsilon, rounds):
    config, planned = _planned(rounds=rounds, epsilon=epsilon)
    verification = _verification(config, planned, rounds)
    assert verification.passed, [check for check in verification.checks if not check.passed]


@given(
    epsilon=st.floats(0.02, 20),
    rounds=st.integers(1, 50),
    mode=st.sampled_from(["record-distributed", "client-distributed"]),
)
@settings(max_examples=25, deadline=None)
def test_whatever_is_planned_is_accepted(epsilon, rounds, mode):
    try:
        config, planned = _planned(rounds=rounds, epsilon=epsilon, mode=mode)
    except ConfigError:
        return
    verification = _verification(config, planned, rounds)
    assert verification.passed, [check for check in verification.checks if not check.passed]


@pytest.mark.lengthy
def test_where_records_are_sampled_the_noise_is_held_against_the_plan_too():
    config, planned = _planned(rounds=3, epsilon=1.0, probability="1/3")
    assert _verification(config, planned, 3).passed


def test_noise_one_unit_off_is_another_noise():
    keys = {
        "mode": "record-distributed",
        "target_epsilon": 1.0,
        "delta": 1e-5,
        "rounds": 8,
        "spare_rounds": 1,
        "max_grad_norm": 0.3,
        "clipping_norm": 10.0,
        "sampling_probability": None,
        "local_steps": None,
        "planned_records": 1000,
        "population_size": 4,
        "planned_cohort": 4,
        "min_survivors": 3,
        "max_colluders": 1,
        "max_participations": 9,
        "scale_bits": 16,
        "dimension": 650,
        "cohorts": "rotation",
        "masking": True,
    }
    request = PrivacyRequest(**{**keys, "sampling_probability": 1})
    planned = plan(request)
    check_noise(request, planned.noise_std)
    for other in (planned.noise_std - 1, planned.noise_std + 1, 2 * planned.noise_std, 0):
        with pytest.raises(ConfigError, match=r"the noise is \d+ grid units"):
            check_noise(request, other)
