"""What every entry of `MODELS` must do; a new one is tested here unasked, once it has a line in `SHAPES`."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.builders import MODELS, build_model, model_features
from fedlearn.model.layout import read_model, write_model
from fedlearn.model.vector import layout_of, read_parameters, write_parameters
from fedlearn.privacy.discrete_gaussian import discrete_gaussian
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import IntVector
from fedlearn.round.agreement import agree
from fedlearn.round.contribution import Contributor
from fedlearn.task.classification import Classification
from fedlearn.training.evaluate import evaluate
from fedlearn.training.local import record_sum, train_privately
from fedlearn.training.model_check import check_model

SHAPES = {"linear": (1, 8, 8), "mlp": (1, 8, 8), "cnn": (1, 28, 28), "scatter-linear": (1, 16, 16)}
CLASSES = ("left", "right")

every_model = pytest.mark.parametrize("name", sorted(MODELS))


def records(name: str, count: int = 64) -> Dataset:
    """Noisy images that are bright on the left or on the right, as the model takes them."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    features = generator.random((count, *SHAPES[name])).astype(np.float32) * 0.5
    half = features.shape[-1] // 2
    features[labels == 0, ..., :half] += 0.5
    features[labels == 1, ..., half:] += 0.5
    return model_features(name, options={}, dataset=Dataset(features, labels, Classification(CLASSES)))


def build(name: str, data: Dataset, seed: int = 3) -> nn.Module:
    return build_model(name, input_shape=data.input_shape, classes=2, options={}, seed=seed)


def test_the_table_of_shapes_is_complete() -> None:
    assert set(SHAPES) == set(MODELS)


@every_model
def test_it_passes_the_private_check(name: str) -> None:
    data = records(name, 2)
    check_model(build(name, data), input_shape=data.input_shape, task=data.task, unit=PrivacyUnit.RECORD)


@every_model
def test_it_learns_from_clipped_sums(name: str) -> None:
    data = records(name)
    model = build(name, data)
    weights, velocity = read_parameters(model), 0.0
    common = {"sampling_probability": Fraction(1), "max_grad_norm": 1.0, "entropy": stream_entropy(), "device": "cpu"}
    for _ in range(12):
        total = record_sum(model, weights, data, **common)
        velocity = 0.8 * velocity + total / len(data)
        weights = weights - 0.5 * velocity
    assert evaluate(model, weights, data, device="cpu")["accuracy"] > 0.9


@every_model
def test_it_learns_in_private_steps(name: str) -> None:
    """Noise of a hundredth of the bound: far from a guarantee, near enough to see that the direction is right."""
    data = records(name)
    model = build(name, data)
    weights = read_parameters(model)
    update = train_privately(
        model,
        weights,
        data,
        local_steps=30,
        learning_rate=1.0,
        max_grad_norm=1.0,
        sampling_probability=Fraction(1, 2),
        planned_batch=Fraction(32),
        step_noise_std=2621,
        step_noise=discrete_gaussian,
        entropy=stream_entropy(),
        device="cpu",
    )
    assert evaluate(model, weights + update, data, device="cpu")["accuracy"] > 0.9


# The two bounds of the record modes clip every record, and none: a wrong factor shows in one of the two alone.
MODES = {
    **{name: () for name, mechanism in MECHANISMS.items() if mechanism.privacy_unit != "record"},
    **{
        f"{mode}, {bound}": (f"privacy.max_grad_norm={norm}", f"secure_aggregation.scale_bits={bits}")
        for mode in ("record-distributed", "record-local")
        for bound, norm, bits in (("all clipped", 0.02, 20), ("none clipped", 100.0, 8))
    },
}


def test_the_table_of_modes_is_complete() -> None:
    assert {mode.partition(",")[0] for mode in MODES} == set(MECHANISMS)


@every_model
@pytest.mark.parametrize("mode", MODES)
def test_many_clients_at_once_equal_one_after_the_other_in_float64(name: str, mode: str) -> None:
    """What a stack of clients computes, before it is rounded and hidden, against the loop."""
    data = records(name, 70)
    model = build(name, data).double()
    common = ("privacy.delta=1e-4", "privacy.target_epsilon=8", "training.local_steps=3", "training.batch_size=4")
    settings = (f"privacy.mode={mode.partition(',')[0]}", *common, "secure_aggregation.scale_bits=14", *MODES[mode])
    config = RunConfig.load("digits", ["training.learning_rate=0.3", *settings, "secure_aggregation.masking=false"])
    agreed = agree(
        config,
        model,
        population_size=10,
        device="cpu",
        entropy=stream_entropy(),
        step_noise=without_step_noise,
        alone=False,
    )
    weights = read_parameters(model) + 0.05 * np.cos(np.arange(layout_of(model).dimension))
    held = [data.take(np.arange(count)) for count in (7, 0, 70)]
    clients = [Contributor(lambda held=share: held, (5, number)) for number, share in enumerate(held)]
    alone = np.stack([agreed.work(weights, client) for client in clients])
    assert np.abs(alone[0]).max() > 0
    assert not alone[1].any()
    if agreed.stacked is None:
        assert (name, agreed.mechanism.name) in CLOSED_FORMS
        return
    rows = np.concatenate(list(agreed.stacked(weights, clients)))
    assert rows.shape == alone.shape, "every shipped model is made of layers that can be stacked"
    assert not rows[1].any()
    # Truncation to the grid of record-local turns a last bit into a grid unit of 2^-18 of the bound, in each step.
    unit = 0.3 * (config.privacy.max_grad_norm or 0) * 2.0**-18 / float(agreed.plan.planned_batch or 1)
    tolerance = 3 * unit if agreed.plan.planned_batch else 1e-12 * max(1.0, np.abs(alone).max())
    assert np.abs(rows - alone).max() <= tolerance


CLOSED_FORMS = {(name, "record-distributed") for name in ("linear", "scatter-linear")}


def without_step_noise(noise_std: int, dimension: int, entropy: Entropy) -> IntVector:
    del noise_std, entropy
    return np.zeros(dimension, dtype=np.int64)


@every_model
def test_its_parameters_survive_the_round_trip(name: str) -> None:
    data = records(name, 2)
    model, other = build(name, data), build(name, data, seed=4)
    layout = layout_of(model)
    weights = read_parameters(model)
    write_parameters(other, read_model(write_model(weights, layout), layout))
    assert np.array_equal(read_parameters(other), weights)
    assert layout_of(other) == layout


@every_model
def test_the_seed_decides_its_start_weights_and_touches_no_generator(name: str) -> None:
    data = records(name, 2)
    before = torch.get_rng_state()
    first, same, other = (read_parameters(build(name, data, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, same)
    assert np.array_equal(first, other) == ("linear" in name)
