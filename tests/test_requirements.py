"""Of docs/specification/privacy.md 9, the features that are not offered: their keys are refused with a sentence."""

import pytest

from fedlearn import RunConfig
from fedlearn.errors import ConfigError


def refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is not a key of a run"):
        RunConfig.load("digits", {key: value})


def test_r02_fixed_or_shuffled_batches_are_not_offered_in_record_modes():
    refused("training.shuffle", True)
    refused("privacy.batch_size", 32)


def test_r07_a_clients_weight_is_no_setting():
    refused("training.weighted_by", "num-examples")


def test_r08_no_metric_of_a_client_can_be_asked_for():
    refused("training.metrics", ["loss"])


def test_r10_a_proximal_term_is_not_offered():
    refused("training.proximal_mu", 0.1)


def test_r12_sensitivity_and_noise_are_no_settings():
    refused("privacy.sensitivity", 1e-4)
    refused("privacy.noise_multiplier", 1.0)


def test_r13_adaptive_clipping_is_not_offered():
    refused("privacy.target_quantile", 0.5)


def test_r16_tuning_on_private_data_is_not_offered():
    refused("run.tune", True)
