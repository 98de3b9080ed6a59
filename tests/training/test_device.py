"""The device that a run names, or the best one there is."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.classification import Classification
from fedlearn.training.device import in_memory, pick_device
from fedlearn.training.local import train_update
from fedlearn.training.record_sums import clipped_gradient_sum


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == "cpu"


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, cpu, cuda, mps"):
        pick_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match='does not find here; use "auto" or "cpu"'):
        pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_auto_takes_the_gpu() -> None:
    assert pick_device("auto") == "cuda"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 TB"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_tried_again_with_a_quarter(error: BaseException) -> None:
    asked = []

    def work(size: int) -> str:
        asked.append(size)
        if size > 4:
            raise error
        return "done"

    assert in_memory(work, 64) == ("done", 4)
    assert asked == [64, 16, 4]


def test_where_one_record_is_too_much_it_is_said_and_so_is_any_other_error() -> None:
    def work(size: int) -> None:
        raise torch.OutOfMemoryError(f"at {size}")

    with pytest.raises(torch.OutOfMemoryError, match="at 1"):
        in_memory(work, 64)
    with pytest.raises(RuntimeError, match="shapes"):
        in_memory(lambda size: _raise(RuntimeError("shapes do not fit")), 64)


def _raise(error: Exception) -> None:
    raise error


class Small(nn.Module):
    """A model on a device whose memory holds the activations of so many records."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.most, self.failed = most, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.second(torch.tanh(self.first(x)))


def some_records(count: int = 100) -> Dataset:
    generator = np.random.default_rng(5)
    features = generator.normal(size=(count, 4)).astype(np.float32)
    return Dataset(features, generator.integers(0, 2, count), Classification(("a", "b")))


@pytest.mark.parametrize("most", [1, 5, 16])
def test_the_sum_of_clipped_gradients_is_the_same_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Of a model that Opacus computes, whose layers are PyTorch's own."""
    records, model = some_records(), nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    failed, forward = [], nn.GELU.forward

    def in_little_memory(layer: nn.GELU, x: Tensor) -> Tensor:
        if len(x) > most:
            failed.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(layer, x)

    def total() -> Vector:
        return clipped_gradient_sum(model, records, max_grad_norm=0.1, device="cpu")

    expected = total()
    monkeypatch.setattr(nn.GELU, "forward", in_little_memory)
    np.testing.assert_allclose(total(), expected, atol=1e-6)
    assert failed


def test_an_update_is_the_same_where_a_batch_has_to_be_computed_in_parts() -> None:
    records, model = some_records(), Small(1000)
    weights = read_parameters(model)

    def update(most: int) -> Vector:
        model.most = most
        options = {"local_steps": 4, "batch_size": 32, "learning_rate": 0.5, "seed": (1, 2), "device": "cpu"}
        return train_update(model, weights, records, **options)  # type: ignore[arg-type]

    whole = update(1000)
    np.testing.assert_allclose(update(3), whole, atol=1e-6)
    assert model.failed == 2, "of 32 and of 8 records; what sufficed once is kept for the next steps"


def test_without_memory_for_one_record_zeros_and_noise_are_sent(load_plain, play) -> None:
    party = play(load_plain())

    def no_memory() -> Dataset:
        raise torch.OutOfMemoryError("CUDA out of memory")

    party.pool.holder(0).records = no_memory
    party.advertise()
    values = np.frombuffer(party.masked(), "<i4").astype(float)
    # Zeros plus noise: the sample deviation of 650 draws is within 20 % but for 1e-11.
    assert values.std() == pytest.approx(party.data.plan.noise_std, rel=0.2)
