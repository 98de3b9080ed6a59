"""Steps through PyTorch's compiler: the same gradients, only for long runs, and never where they cannot be made."""

import logging

import pytest
import torch
from torch import Tensor, nn

from fedlearn.model.builders import build_model
from fedlearn.task.classification import Classification
from fedlearn.training.stacked.compiled import CompiledModel, worth_compiling
from fedlearn.training.stacked.model import StackedModel, stack

TASK = Classification(("a", "b", "c"))


def case(*, clients: int, records: int, seed: int = 0) -> tuple[StackedModel, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = build_model("cnn", input_shape=(1, 28, 28), classes=3, options={}, seed=seed).double()
    stacked = stack(model, TASK)
    assert stacked is not None
    packed = stacked.pack([torch.randn(clients, *p.shape, dtype=torch.float64) * 0.2 for p in model.parameters()])
    inputs = torch.rand(clients, records, 1, 28, 28, dtype=torch.float64)
    ones = torch.ones(clients, records, dtype=torch.float64)
    return stacked, packed, inputs, torch.randint(0, 3, (clients, records)), ones


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


@pytest.mark.slow
@pytest.mark.timeout(600)  # the C++ compiler alone takes two minutes here
def test_a_compiled_step_gives_the_kernels_gradients_for_blocks_of_every_size(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = case(clients=4, records=4)[0]
    compiled = CompiledModel(plain.kernels, plain.shapes)
    for clients, records in ((4, 4), (3, 7), (6, 2), (1, 5), (2, 1)):
        plain, *given = case(clients=clients, records=records, seed=records)
        assert apart(compiled.gradient(*given), plain.gradient(*given)) <= 1e-12
        for bound in (0.1, 1e3):
            assert apart(compiled.clipped_sum(*given, bound), plain.clipped_sum(*given, bound)) <= 1e-12
    fell_back = [record for record in caplog.records if record.name.startswith("fedlearn")]
    assert fell_back == []


@pytest.mark.slow
def test_without_a_compiler_the_kernels_go_on_and_the_log_says_so_once(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nonexistent/c++",))
    plain, *given = case(clients=2, records=2)
    compiled = CompiledModel(plain.kernels, plain.shapes)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, logger="fedlearn"):
        for _ in range(2):
            assert apart(compiled.gradient(*given), plain.gradient(*given)) == 0
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("fedlearn")]
    assert "goes on without PyTorch's compiler" in said


def test_only_a_run_of_many_products_is_worth_compiling() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 10))
    stacked = stack(plain, TASK)
    assert stacked is not None
    a_record = 3 * (196 * 16 * 64 + 3136 * 10)
    assert worth_compiling(stacked, plain, (1, 28, 28), 2 * 10**12 // a_record + 1)
    assert not worth_compiling(stacked, plain, (1, 28, 28), 2 * 10**12 // a_record - 1)
