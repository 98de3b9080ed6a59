"""What a client sends when its work goes wrong: what any client sends, zeros and noise."""

import numpy as np
import pytest
from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.model.builders import build_model
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.quantization import Lanes
from fedlearn.round.agreement import Agreement, agree
from fedlearn.round.contribution import Contributor, contribute
from fedlearn.task.classification import Classification

BITS = "secure_aggregation.scale_bits=18"
LOCAL = ("privacy.mode=record-local", "training.local_steps=2", "privacy.sampling_probability=1/2")


def held(count: int) -> Dataset:
    generator = np.random.default_rng(count)
    features = generator.random((count, 1, 8, 8), dtype=np.float32)
    return Dataset(features, generator.integers(0, 10, count), Classification(tuple("0123456789")))


def unreadable() -> Dataset:
    raise OSError("the disk is gone")


def agreement(*overrides: str, model: nn.Module | None = None) -> tuple[Agreement, np.ndarray]:
    config = RunConfig.load("digits", list(overrides))
    model = model or build_model("linear", input_shape=(1, 8, 8), classes=10, options={}, seed=0)
    agreed = agree(config, model, population_size=10, device="cpu", entropy=stream_entropy(), alone=False)
    return agreed, read_parameters(model)


def contributed(agreed: Agreement, weights: np.ndarray, clients: list[Contributor]) -> Lanes:
    return contribute(
        weights,
        clients,
        work=agreed.work,
        stacked=agreed.stacked,
        mechanism=agreed.mechanism,
        plan=agreed.plan,
        entropy=stream_entropy(),
    )


@pytest.mark.parametrize("mode", ["none", "client-central"])
def test_a_client_that_fails_sends_zeros_and_its_neighbors_what_they_have(mode: str) -> None:
    agreed, weights = agreement(f"privacy.mode={mode}", "training.local_steps=3", "training.batch_size=8", BITS)
    assert agreed.stacked is not None
    good = [Contributor(lambda count=count: held(count), (count,)) for count in (9, 30, 12)]
    alone = np.concatenate([contributed(agreed, weights, [client]) for client in good])
    mixed = contributed(agreed, weights, [good[0], Contributor(unreadable, (0,)), *good[1:]])
    # The neighbors are done by the loop then: the same work, up to the rounding of float32 and one grid unit.
    difference = np.delete(mixed, 1, axis=0).astype(np.int32).astype(np.int64) - alone.astype(np.int32)
    assert np.abs(difference).max() <= 2 ** (agreed.plan.scale_bits - 16)
    assert not mixed[1].any()


def test_a_model_that_is_not_what_its_layers_say_is_trained_one_client_after_the_other() -> None:
    model = build_model("linear", input_shape=(1, 8, 8), classes=10, options={}, seed=0)
    model.register_forward_hook(lambda _, __, logits: 2 * logits)
    agreed, weights = agreement("privacy.mode=none", "training.local_steps=3", "training.batch_size=8", model=model)
    reads: list[int] = []

    def reading(count: int) -> Dataset:
        reads.append(count)
        return held(count)

    clients = [Contributor(lambda count=count: reading(count), (count,)) for count in (9, 30, 12)]
    first = contributed(agreed, weights, clients)
    reads.clear()
    np.testing.assert_array_equal(contributed(agreed, weights, clients), first)
    assert reads == [9, 30, 12]
    expected = agreed.mechanism.work.to_grid(
        np.stack([agreed.work(weights, client) for client in clients]), agreed.plan
    )
    np.testing.assert_array_equal(first.astype(np.int32), expected)


def test_in_record_local_a_client_whose_records_cannot_be_read_is_noised_like_any_other() -> None:
    agreed, weights = agreement(*LOCAL)
    clients = [Contributor(lambda: held(0), (0,)), Contributor(unreadable, (1,))]
    lanes = contributed(agreed, weights, clients).astype(np.int32).astype(np.float64)
    empty, failed = lanes.std(axis=1)
    # 650 draws each: the ratio leaves this range in fewer than one run of 10^6.
    assert 0.75 < failed / empty < 1.33
    assert failed > 0
