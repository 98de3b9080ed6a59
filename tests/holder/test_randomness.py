"""No release of a private mode can reach another source of randomness than the AES stream that it is given."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedlearn.coordinator.pooled_data import load_simulated_data
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.model.layout import write_model
from fedlearn.model.vector import layout_of, read_parameters
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import Lanes
from fedlearn.simulation.cohorts import SimulatedCohorts

PRIVATE = [name for name, mechanism in MECHANISMS.items() if mechanism.private]
BY_CLIENT = [name for name in PRIVATE if MECHANISMS[name].privacy_unit == "client"]


class NoSampling(TorchDispatchMode):
    """Every operator of PyTorch that draws from one of its generators fails."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert torch.Tag.nondeterministic_seeded not in func.tags, f"{func} draws from a generator of PyTorch"
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Who asked NumPy for a generator; the global ones of Python, NumPy and PyTorch must stay as they are."""
    asked: set[str] = set()

    def told_by(make: Callable) -> Callable:
        def told(*arguments, **keywords):
            asked.add(sys._getframe(1).f_globals["__name__"])
            return make(*arguments, **keywords)

        return told

    before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())
    with monkeypatch.context() as patched, NoSampling():
        for name in ("default_rng", "RandomState"):
            patched.setattr(np.random, name, told_by(getattr(np.random, name)))
        yield asked
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("mode", PRIVATE)
def test_a_release_is_a_function_of_the_stream_alone(mode, load_digits, tmp_path, monkeypatch):
    config = load_digits(
        f"privacy.mode={mode}",
        "model.name=mlp",
        "secure_aggregation.masking=false",
        "secure_aggregation.scale_bits=16",
        "privacy.clipping_norm=1.0",
        "privacy.delta=1e-4",
        "privacy.sampling_probability=1/2",
    )
    data = load_simulated_data(config)
    released = []
    for number, seed in enumerate((1, 1, 2)):
        lanes, asked = _release(data, tmp_path / str(number), seed, monkeypatch)
        assert asked <= ({"fedlearn.training.local"} if mode in BY_CLIENT else set()), "batches, where they are public"
        released.append(lanes)
        random.seed(number)  # the next release comes after another past of every global generator
        torch.manual_seed(number)
    np.testing.assert_array_equal(released[0], released[1])
    if mode != "client-central":  # whose clients add no noise
        assert np.mean(released[0] == released[2]) < 0.02


def _release(data, folder, seed: int, monkeypatch) -> tuple[Lanes, set[str]]:
    folder.mkdir()
    model = data.build_model(data.config)
    body = write_model(read_parameters(model), layout_of(model))
    cohorts = SimulatedCohorts(data, folder, entropy=stream_entropy(lambda size: bytes([seed]) * size))
    for attempt in (0, 1):  # in the first one the kernels are checked, on made-up clients
        position = ("ab" * 16, 1, attempt)
        assert cohorts.agree(position, range(10), data.config.to_bytes())
        with watched(monkeypatch) if attempt else nullcontext(set()) as asked:
            summed = cohorts.total(position, range(10), body)
    noise = MECHANISMS[data.config.privacy.mode].noise.central(data.plan, stream_entropy())
    assert noise.any() == (data.config.privacy.mode == "client-central")
    cohorts.close()
    return summed.lanes, asked
