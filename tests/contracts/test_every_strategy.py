"""Every registered strategy: options, float64, order of tensors, resuming."""

import numpy as np
import pytest

from fedlearn.errors import ConfigError
from fedlearn.flower.strategies import STRATEGIES, StrategyOptimizer
from fedlearn.model.layout import Layout

# "b" before "a": a strategy or a record that sorts names would mix the tensors up.
LAYOUT = Layout(("b", "a"), ((2, 3), (2,)))
UPDATE = np.arange(1.0, 9.0) / 10


def walk(optimizer: StrategyOptimizer, weights: np.ndarray, rounds: range) -> np.ndarray:
    for number in rounds:
        weights = optimizer.step(number, weights, UPDATE * number)
    return weights


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_moves_every_entry_in_the_direction_of_the_update(name):
    after = walk(StrategyOptimizer(name, {}, LAYOUT), np.zeros(8), range(1, 3))
    assert after.dtype == np.float64
    assert (after > 0).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_resumes_to_the_bit(name):
    options = {"server_momentum": 0.8} if name == "FedAvgM" else {}
    whole = walk(StrategyOptimizer(name, options, LAYOUT), np.zeros(8), range(1, 6))
    first = StrategyOptimizer(name, options, LAYOUT)
    half = walk(first, np.zeros(8), range(1, 3))
    second = StrategyOptimizer(name, options, LAYOUT)
    second.restore(first.state())
    np.testing.assert_array_equal(walk(second, half, range(3, 6)), whole)


def test_fedavg_adds_the_update_and_momentum_adds_the_past():
    plain = walk(StrategyOptimizer("FedAvg", {}, LAYOUT), np.zeros(8), range(1, 3))
    np.testing.assert_allclose(plain, UPDATE * 3, rtol=1e-15)
    momentum = walk(StrategyOptimizer("FedAvgM", {"server_momentum": 0.5}, LAYOUT), np.zeros(8), range(1, 3))
    np.testing.assert_allclose(momentum, UPDATE * 3.5, rtol=1e-14)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_option_that_is_not_its_own_is_refused(name):
    with pytest.raises(ConfigError, match=r"training\.strategy_options\.fraction_train is not an option"):
        StrategyOptimizer(name, {"fraction_train": 1.0}, LAYOUT)
