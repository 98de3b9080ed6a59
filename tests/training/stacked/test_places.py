"""A record that is added changes no bit of what another one adds, whatever weights a coordinator chooses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.builders import build_model
from fedlearn.model.vector import layout_of, read_parameters, write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.classification import Classification
from fedlearn.training import alone
from fedlearn.training.alone import AloneSums
from fedlearn.training.record_sums import clipped_gradient_sum
from fedlearn.training.stacked import places
from fedlearn.training.stacked.linear import LinearKernel
from fedlearn.training.stacked.model import stack
from fedlearn.training.stacked.places import checked_places, places_of

TASK = Classification(("a", "b", "c"))

C = 0.3
KINDS = ["start", "equal rows", "equal rows, biases", "long sums", "cancelling halves"]


def chosen_weights(model: nn.Module, kind: str, generator: np.random.Generator) -> Vector:
    """Weights of a coordinator whose gradients hang on last bits."""
    layout = layout_of(model)
    parts = {
        name: generator.normal(size=shape) * (0.5 if len(shape) > 1 else 0.1)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    last = [name for name in layout.names if name.endswith("weight")][-1]
    if kind == "start":
        return read_parameters(model)
    if kind.startswith("equal rows"):
        parts[last] = np.tile(1e9 * generator.normal(size=(1, *parts[last].shape[1:])), (len(parts[last]), 1))
        if kind == "equal rows":
            parts[last.replace("weight", "bias")][:] = 0
    if kind == "long sums":
        parts[last] = 1e6 + generator.normal(size=parts[last].shape)
    if kind == "cancelling halves":
        half = generator.normal(size=(1, parts[last].shape[1])) * 1e12
        parts[last] = np.concatenate([half, -half] * len(parts[last]))[: len(parts[last])]
    return layout.join({name: part.astype(np.float32).astype(np.float64) for name, part in parts.items()})


def made_up(count: int, shape: tuple[int, ...], classes: int, generator: np.random.Generator) -> Dataset:
    features = generator.uniform(-1, 1, size=(count, *shape)).astype(np.float32)
    return Dataset(features, generator.integers(0, classes, count), Classification(tuple(map(str, range(classes)))))


def farthest_move(sum_of: Callable[[Dataset], Vector], records: Dataset) -> float:
    """How far more than its own part a record moves the sum, over some records, left out at any place."""
    whole = sum_of(records)
    everybody = np.arange(len(records))
    found = []
    for row in {0, len(records) // 3, len(records) // 2, len(records) - 1}:
        rest, own = records.take(np.delete(everybody, row)), records.take(everybody[row : row + 1])
        found.append(float(np.linalg.norm(whole - sum_of(rest) - sum_of(own))))
    shuffled = np.random.default_rng(5).permutation(len(records))
    found.append(float(np.linalg.norm(whole - sum_of(records.take(shuffled)))))
    return max(found)


def of(model: nn.Module, weights: Vector) -> Callable[[Dataset], Vector]:
    sums = AloneSums(model, "cpu")
    return lambda records: sums(weights, records, C)


SHAPES = [
    (64, (64,), 10),
    (64, (30,), 10),
    (30, (10,), 10),
    (30, (10,), 2),
    (13, (8,), 3),
    (5, (3,), 3),
    (64, (7,), 10),
    (64, (33,), 7),
    (29, (17, 5), 3),
    (100, (1,), 5),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES[::3], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[1::3] + SHAPES[2::3])],
    ids=str,
)
def test_a_record_more_changes_no_bit_of_the_others_parts(shape, kind) -> None:
    """Side by side they move by up to 25 C (the next test). Sums are float64, so 1e-9 C is less than a bit of any."""
    width, hidden, classes = shape
    generator = np.random.default_rng(0)
    model = build_model("mlp", input_shape=(width,), classes=classes, options={"hidden": hidden}, seed=0)
    weights = chosen_weights(model, kind, generator)
    assert farthest_move(of(model, weights), made_up(300, (width,), classes, generator)) <= 1e-9 * C


def test_the_same_attack_finds_records_that_are_packed_side_by_side(monkeypatch) -> None:
    monkeypatch.setattr(places, "places_of", lambda records: np.arange(len(records)) % 64)
    monkeypatch.setattr(places, "_holds", lambda *_: True)
    generator = np.random.default_rng(0)
    model = build_model("mlp", input_shape=(64,), classes=10, options={"hidden": (30,)}, seed=0)
    weights = chosen_weights(model, "equal rows", generator)
    assert farthest_move(of(model, weights), made_up(300, (64,), 10, generator)) > C


@given(
    width=st.integers(1, 70),
    hidden=st.lists(st.integers(1, 70), max_size=2),
    classes=st.integers(2, 12),
    count=st.integers(1, 150),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=20, deadline=None)
def test_so_it_is_for_any_shape(width, hidden, classes, count, kind, seed) -> None:
    generator = np.random.default_rng(seed)
    name, options = ("mlp", {"hidden": hidden}) if hidden else ("linear", {})
    model = build_model(name, input_shape=(width,), classes=classes, options=options, seed=0)
    weights = chosen_weights(model, kind, generator)
    assert farthest_move(of(model, weights), made_up(count, (width,), classes, generator)) <= 1e-9 * C


def convolution() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_for_images(kind) -> None:
    generator = np.random.default_rng(1)
    model = convolution()
    weights = chosen_weights(model, kind, generator)
    assert farthest_move(of(model, weights), made_up(200, (1, 6, 6), 3, generator)) <= 1e-9 * C


def test_words_whose_gradients_cancel_add_no_more_than_the_bound() -> None:
    """A word that a record has twice gets gradients of 1e8 that cancel. Added to the table of all records one after the
    other they left the rounding of 1e8 behind, many times the bound."""
    model = stack(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(32, 3)), TASK)
    assert model is not None
    wide = replace(model, wide=True)
    generator = np.random.default_rng(0)
    head = np.tile(generator.normal(size=(3, 1, 4)), (1, 8, 1)) * 1e8
    head[:, 1::2] *= -1
    head[:, 6:] = generator.normal(size=(3, 2, 4))
    row = np.concatenate([generator.normal(size=24), head.ravel(), np.zeros(3)])
    rows = torch.from_numpy(row[np.newaxis].astype(np.float32))
    inputs = torch.from_numpy(np.repeat(generator.integers(0, 6, size=(1, 64, 4)), 2, axis=2).astype(np.float32))
    targets, present = torch.zeros(1, 64, dtype=torch.int64), torch.ones(1, 64)
    whole = wide.clipped_sum(rows, inputs, targets, present, C)
    for left_out in range(64):
        others = present.clone()
        others[0, left_out] = 0
        moved = whole - wide.clipped_sum(rows, inputs, targets, others, C)
        assert moved.norm() <= C * (1 + 2**-10)


def test_the_sum_is_that_of_the_clipped_gradients() -> None:
    generator = np.random.default_rng(4)
    model = convolution()
    records = made_up(100, (1, 6, 6), 3, generator)
    weights = read_parameters(model)
    found = of(model, weights)(records)
    write_parameters(model, weights)
    expected = clipped_gradient_sum(model, records, max_grad_norm=C, device="cpu")
    np.testing.assert_allclose(found, expected, atol=1e-5 * C)


def test_a_record_that_is_not_finite_counts_as_zeros_and_changes_no_bit_of_the_others() -> None:
    generator = np.random.default_rng(0)
    model = build_model("mlp", input_shape=(30,), classes=3, options={"hidden": (33,)}, seed=0)
    sum_of = of(model, chosen_weights(model, "long sums", generator))
    records = made_up(130, (30,), 3, generator)
    expected = sum_of(records)
    for poison in (np.nan, np.inf, 3e38):
        features = np.concatenate([np.full((1, 30), poison, np.float32), records.features])
        worse = Dataset(features, np.concatenate([[1], records.labels]), records.task)
        assert np.linalg.norm(sum_of(worse) - expected) <= 1e-9 * C


@pytest.mark.parametrize(
    "shape",
    [(9, None, 2), (17, None, 3), *(pytest.param((9, (hidden,), 2), marks=pytest.mark.slow) for hidden in (30, 5))],
    ids=str,
)
def test_records_that_overflow_at_other_places_alone_are_lost_by_nobody_elses(shape) -> None:
    """Sums whose parts overflow in one order and not in another: at these shapes a place decides on the order."""
    width, hidden, classes = shape
    options = {"hidden": hidden} if hidden else {}
    generator = np.random.default_rng(3)
    name = "mlp" if hidden else "linear"
    model = build_model(name, input_shape=(width,), classes=classes, options=options, seed=0)
    for _ in range(20):
        signs = generator.choice([-1.0, 0.0, 1.0], len(read_parameters(model)))
        sum_of = of(model, 3e38 * generator.uniform(0.3, 1) * signs)
        records = made_up(64, (width,), classes, generator)
        parts = sum(sum_of(records.take(np.array([row]))) for row in range(len(records)))
        assert np.linalg.norm(sum_of(records) - parts) <= 1e-9 * C


def test_a_gradient_without_squares_in_float32_is_within_the_least_bound_that_a_run_may_have(load_digits) -> None:
    """Entries of 1e-26, whose squares are zero there, were 15,000 times as long as a bound of 1e-30."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    parts = {name: np.zeros(shape) for name, shape in zip(layout_of(model).names, layout_of(model).shapes, strict=True)}
    parts["3.weight"][1], parts["0.weight"][:] = 1e6, 1e-6
    record = Dataset(np.full((1, 1, 3, 3), 1e-3, np.float32), np.zeros(1, np.int64), Classification(("a", "b")))
    least = 1e-12
    with pytest.raises(ConfigError, match=r"privacy\.max_grad_norm.*at least 1e-12"):
        load_digits("privacy.max_grad_norm=9e-13")
    for bias in range(-100, 1, 9):
        parts["3.bias"][1] = bias
        weights = np.concatenate([part.ravel() for part in parts.values()])
        assert np.linalg.norm(AloneSums(model, "cpu")(weights, record, least)) <= least * (1 + 1e-6)


def test_a_records_place_is_a_function_of_its_content() -> None:
    records = made_up(500, (7,), 3, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(500)
    np.testing.assert_array_equal(places_of(records)[order], places_of(records.take(order)))
    assert len(set(places_of(records))) == 64
    relabelled = Dataset(records.features, (records.labels + 1) % 3, records.task)
    assert (places_of(relabelled) != places_of(records)).mean() > 0.9


def by_place(self: LinearKernel, parameters: list[Tensor], inputs: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    """A product whose last bits hang on how much the records before weigh."""
    weight, bias = parameters[0].transpose(1, 2), parameters[1].unsqueeze(1)
    exact = torch.baddbmm(bias, inputs, weight)
    return exact * (1 + 2**-23 * (inputs.abs().sum(dim=2, keepdim=True).cumsum(dim=1) > 9)), (inputs,)


def test_where_kernels_do_not_hold_each_record_is_computed_by_itself(monkeypatch) -> None:
    model = build_model("mlp", input_shape=(12,), classes=3, options={"hidden": (9,)}, seed=0)
    assert checked_places(model, input_shape=(12,), task=Classification(("a", "b", "c")), device="cpu") is not None
    monkeypatch.setattr(LinearKernel, "forward", by_place)
    assert checked_places(model, input_shape=(12,), task=Classification(("a", "b", "c")), device="cpu") is None
    generator = np.random.default_rng(0)
    records = made_up(60, (12,), 3, generator)
    assert farthest_move(of(model, chosen_weights(model, "long sums", generator)), records) <= 1e-9 * C


def test_a_shape_is_tried_once(monkeypatch) -> None:
    tried = []
    true = alone.checked_places
    monkeypatch.setattr(alone, "checked_places", lambda *a, **k: tried.append(k["input_shape"]) or true(*a, **k))
    model = convolution()
    sums = AloneSums(model, "cpu")
    for _ in range(2):
        sums(read_parameters(model), made_up(3, (1, 6, 6), 3, np.random.default_rng(0)), C)
    assert tried == [(1, 6, 6)]
