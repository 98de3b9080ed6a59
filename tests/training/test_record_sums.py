"""Each line of the guarantee of `clipped_gradient_sum`, in closed form and through Opacus."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector, clip_by_l2_norm
from fedlearn.task.classification import Classification
from fedlearn.training.record_sums import clipped_gradient_sum, has_closed_form

TASK = Classification(("a", "b", "c"))


def linear(inputs: int = 12, classes: int = 3) -> nn.Module:
    """A linear head in closed form, with weights that are not zero."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def by_opacus(model: nn.Module) -> nn.Module:
    """The same function, built so that it has no closed form."""
    wrapped = nn.Sequential(*model.children(), nn.Identity())
    assert has_closed_form(model)
    assert not has_closed_form(wrapped)
    return wrapped


def network() -> nn.Module:
    """A small network with a convolution and a normalization that keeps records apart."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 4, 2), nn.Tanh(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(24, 3)]
    return nn.Sequential(*layers)


def records(
    count: int, seed: int = 0, shape: tuple[int, ...] = (1, 3, 4)
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, *shape)).astype(np.float32), generator.integers(0, 3, count)


def one_record_at_a_time(model: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
    """(n, d): each record's gradient by PyTorch alone."""
    dtype = next(model.parameters()).dtype
    rows = []
    for x, y in zip(torch.from_numpy(features).to(dtype), torch.from_numpy(labels), strict=True):
        loss = functional.cross_entropy(model(x[None]), y[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows).to(torch.float64).numpy()


def clipped(model: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64], bound: float) -> Vector:
    return clipped_gradient_sum(model, Dataset(features, labels, TASK), max_grad_norm=bound, device="cpu")


@pytest.mark.parametrize("where", ["below all norms", "among the norms", "above all norms"])
@pytest.mark.parametrize("build", [linear, lambda: by_opacus(linear()), network])
def test_in_float64_the_sum_equals_clipped_gradients_one_at_a_time(build, where: str) -> None:
    """Where every record is clipped a wrong factor does not show, hence bounds on all sides of the norms."""
    model = build().double()
    features, labels = records(150)
    gradients = one_record_at_a_time(model, features, labels)
    norms = np.linalg.norm(gradients, axis=1)
    bound = {"below": norms.min() / 9, "among": np.median(norms), "above": norms.max() * 9}[where.split()[0]]
    expected = clip_by_l2_norm(gradients, bound).sum(axis=0)
    np.testing.assert_allclose(clipped(model, features, labels, bound), expected, rtol=0, atol=1e-12 * bound)


def test_a_head_without_bias_has_its_own_norm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).double()
    features, labels = records(20)
    expected = clip_by_l2_norm(one_record_at_a_time(model, features, labels), 0.5).sum(axis=0)
    np.testing.assert_allclose(clipped(model, features, labels, 0.5), expected, atol=1e-13)


@pytest.mark.parametrize("build", [linear, network])
def test_a_long_gradient_has_the_length_of_the_bound(build) -> None:
    features, labels = records(1)
    assert np.linalg.norm(clipped(build(), features * 50, labels, 0.01)) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("build", [linear, network])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_record_that_is_not_finite_counts_as_zeros_and_leaves_the_others_alone(build, poison: float) -> None:
    features, labels = records(70)
    expected = clipped(build(), np.delete(features, 30, axis=0), np.delete(labels, 30), 0.5)
    features[30, 0, 1, 2] = poison
    np.testing.assert_allclose(clipped(build(), features, labels, 0.5), expected, atol=1e-5)


def test_a_record_whose_norm_overflows_counts_as_zeros() -> None:
    features, labels = records(5)
    features[2] = 3e38
    expected = clipped(linear(), np.delete(features, 2, axis=0), np.delete(labels, 2), 0.5)
    np.testing.assert_allclose(clipped(linear(), features, labels, 0.5), expected, atol=1e-6)


@pytest.mark.parametrize("build", [linear, network])
def test_weights_that_are_not_finite_give_zeros(build) -> None:
    model = build()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert not clipped(model, *records(9), 0.5).any()


@pytest.mark.parametrize("build", [linear, network])
def test_no_record_gives_zeros(build) -> None:
    total = clipped(build(), *records(0), 0.5)
    assert total.dtype == np.float64
    assert total.shape == read_parameters(build()).shape
    assert not total.any()


def test_one_record_moves_a_long_float32_sum_by_hardly_more_than_the_bound() -> None:
    """A float32 sum over all records misses this eight times: 8.5e-4 of the bound, against 5.2e-5 in chunks of 64."""
    features, labels = records(20_000, shape=(1, 20, 20))
    features, labels = features + 1, np.zeros_like(labels)
    model = linear(400)
    moved = clipped(model, features, labels, 0.1) - clipped(model, features[1:], labels[1:], 0.1)
    alone = clipped(model, features[:1], labels[:1], 0.1)
    assert np.linalg.norm(moved - alone) < 1e-4 * 0.1


@pytest.mark.parametrize("build", [linear, network])
def test_the_model_is_left_as_it_was(build) -> None:
    model = build().eval()
    before, names = read_parameters(model), [name for name, _ in model.named_parameters()]
    clipped(model, *records(5), 0.5)
    assert np.array_equal(read_parameters(model), before)
    assert [name for name, _ in model.named_parameters()] == names
    assert not model.training
    assert all(parameter.grad is None and not hasattr(parameter, "grad_sample") for parameter in model.parameters())


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match="max_grad_norm"):
        clipped(linear(), *records(3), bound)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("build", [linear, network])
def test_the_gpu_computes_the_same_sum(build) -> None:
    features, labels = records(500)
    expected = clipped(build(), features, labels, 0.9)
    found = clipped_gradient_sum(build(), Dataset(features, labels, TASK), max_grad_norm=0.9, device="cuda")
    np.testing.assert_allclose(found, expected, atol=1e-3)
