"""Many clients at once: a client's row is its own, whatever its neighbors hold, and failures stay with their client."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn.crypto.keystream import stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.builders import build_model
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.classification import Classification
from fedlearn.training.stacked.box_muller import box_muller
from fedlearn.training.stacked.check import checked_trainer
from fedlearn.training.stacked.trainer import StackedTrainer, block_size

SETTINGS = {"local_steps": 4, "batch_size": 3, "learning_rate": 0.2}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model("cnn", input_shape=(1, 28, 28), classes=3, options={}, seed=1)


@pytest.fixture(scope="module")
def trainer(model: nn.Module) -> StackedTrainer:
    found = checked_trainer(
        model, input_shape=(1, 28, 28), task=Classification(("a", "b", "c")), private=True, device="cpu"
    )
    assert found is not None
    return found


def held(count: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    features = generator.random((count, 1, 28, 28), dtype=np.float32)
    return Dataset(features, generator.integers(0, 3, count), Classification(("a", "b", "c")))


def updates(trainer: StackedTrainer, model: nn.Module, clients: list[tuple[Dataset, int]]) -> Vector:
    seeded = [(records, (0, seed)) for records, seed in clients]
    return trainer.updates(read_parameters(model), seeded, **SETTINGS)


def test_a_clients_row_is_the_same_bits_alone_and_among_others(trainer: StackedTrainer, model: nn.Module) -> None:
    clients = [(held(count, count), count) for count in (9, 2, 5, 12)]
    together = updates(trainer, model, clients)
    for row, client in zip(together, clients, strict=True):
        # A client with fewer records than a batch is filled up to its neighbors' width with records of weight 0.
        np.testing.assert_allclose(updates(trainer, model, [client])[0], row, rtol=0, atol=1e-7)
    alike = [(held(9, seed), seed) for seed in range(7)]
    for row, client in zip(updates(trainer, model, alike), alike, strict=True):
        np.testing.assert_array_equal(updates(trainer, model, [client])[0], row)


def test_a_neighbor_whose_records_are_not_finite_spoils_nobody(trainer: StackedTrainer, model: nn.Module) -> None:
    spoiled = held(2, 8)
    spoiled.features[:] = np.nan
    clean = updates(trainer, model, [(held(9, 1), 1), (held(2, 8), 8)])
    found = updates(trainer, model, [(held(9, 1), 1), (spoiled, 8)])
    np.testing.assert_array_equal(found[0], clean[0])
    assert np.isnan(found[1]).any()


def test_no_weights_let_one_record_wipe_out_what_the_others_send() -> None:
    """A coordinator chooses the weights: here they overflow for a record of zeros and for the one that is looked for.

    So a record that is not finite must not be cleared to zeros, whose own gradient would then spoil the sum.
    """
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    trainer = checked_trainer(model, input_shape=(2,), task=Classification(("a", "b", "c")), private=True, device="cpu")
    assert trainer is not None
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-3e38, 0.0], [0.0, 1e38]]))
        model[0].bias.copy_(torch.tensor([2e38, -1e38]))
        model[2].weight.copy_(torch.tensor([[10.0, 10.0], [-10.0, -10.0], [0.0, 0.0]]))
    features = np.tile(np.array([1, 0], dtype=np.float32), (40, 1))
    labels = np.arange(40) % 2
    looked_for = np.array([[1, 100]], dtype=np.float32)
    nobody = Dataset(features[:0], labels[:0], Classification(("a", "b", "c")))
    without = Dataset(features, labels, nobody.task)
    with_it = Dataset(np.concatenate([features, looked_for]), np.append(labels, 2), nobody.task)
    alone = Dataset(looked_for, np.array([2]), nobody.task)

    def sums(*clients: Dataset) -> Vector:
        return trainer.record_sums(
            read_parameters(model),
            clients,
            sampling_probability=Fraction(1),
            max_grad_norm=0.5,
            entropy=stream_entropy(),
        )

    few, many, none, one = sums(without, with_it, nobody, alone)
    assert np.linalg.norm(few) > 5
    assert np.linalg.norm(many - few) <= 0.5
    assert not none.any()
    assert not one.any()
    np.testing.assert_array_equal(few, sums(without)[0])


def test_private_steps_are_noised_also_for_nobodys_records(trainer: StackedTrainer, model: nn.Module) -> None:
    weights = read_parameters(model)
    rows = trainer.private_updates(
        weights,
        [held(0, 0), held(70, 1)],
        local_steps=1,
        learning_rate=1.0,
        max_grad_norm=0.5,
        sampling_probability=Fraction(1),
        planned_batch=Fraction(70),
        step_noise_std=1 << 20,
        step_noise=box_muller,
        entropy=stream_entropy(),
    )
    unit = 1.0 / float(70 * Fraction(1 << 18) / Fraction("0.5"))
    # Standard deviation of 26,000 draws: off by more than 4 % in one run of 10^10.
    assert np.std(rows, axis=1) / unit / (1 << 20) == pytest.approx([1, 1], rel=0.04)


def test_a_block_is_some_sixty_records_and_bounded_in_memory() -> None:
    assert block_size(26_010, 10, "cpu") == 6
    assert block_size(26_010, 600, "cpu") == 1
    assert block_size(26_010, 10, "cuda") == 161
    assert block_size(10**8, 1, "cpu") == 1


def test_box_muller_has_the_moments_and_the_tails_of_a_gaussian() -> None:
    draws = box_muller(1 << 16, 2_000_001, stream_entropy()) / (1 << 16)
    assert draws.shape == (2_000_001,)
    # Each bound is passed by a right sampler in all but one of 10^6 runs.
    assert abs(draws.mean()) < 0.0035
    assert abs(draws.var() - 1) < 0.005
    assert abs((draws**4).mean() - 3) < 0.035
    beyond = [np.count_nonzero(np.abs(draws) > bound) for bound in (2, 3, 4)]
    expected = [2_000_001 * share for share in (0.0455003, 0.0026998, 0.00006334)]
    assert all(abs(count - mean) < 5 * mean**0.5 for count, mean in zip(beyond, expected, strict=True))
    halves = draws[:1_000_000], draws[1_000_001:]
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.005


def test_the_same_stream_gives_new_noise_at_each_call() -> None:
    entropy = stream_entropy()
    assert np.mean(box_muller(1 << 16, 1000, entropy) == box_muller(1 << 16, 1000, entropy)) < 0.1


def test_training_leaves_pytorchs_generator_and_threads_alone(trainer: StackedTrainer, model: nn.Module) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    updates(trainer, model, [(held(5, 1), 1)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
