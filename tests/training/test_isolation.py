"""Models of a user's own that couple records: none may see two of them, in any of the ways to a clipped sum."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from fedlearn.data.dataset import Dataset
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector, clip_by_l2_norm
from fedlearn.task.classification import Classification
from fedlearn.training.alone import AloneSums
from fedlearn.training.isolation import ExactSum
from fedlearn.training.plain import plain_layers
from fedlearn.training.record_sums import clipped_gradient_sum, has_closed_form
from fedlearn.training.stacked.model import stack

TASK = Classification(("a", "b", "c"))

WIDTH, CLASSES = 6, 3
BOUND = 0.5  # a power of two, so that differences of sums are exact


class Own(nn.Module):
    """A network in whose middle something happens to the whole batch, (n, 8) -> (n, 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(self.before(x)))))

    def before(self, x: Tensor) -> Tensor:
        return x

    def middle(self, x: Tensor) -> Tensor:
        return x


class TrimsToLongest(Own):
    """As for texts that are filled up: columns that are zero for every record of the batch are left out."""

    def before(self, x: Tensor) -> Tensor:
        longest = int((x != 0).any(dim=0).nonzero().max()) + 1
        return functional.pad(x[:, :longest], (0, WIDTH - longest), value=float(longest))


class NormalizesOverBatch(Own):
    def middle(self, x: Tensor) -> Tensor:
        return x if len(x) < 3 else (x - x.mean(dim=0)) / (x.std(dim=0) + 0.1)


class Winsorizes(Own):
    def middle(self, x: Tensor) -> Tensor:
        return torch.minimum(x, x.quantile(0.9, dim=0)) if len(x) > 2 else x


class RoutesWithCapacity(Own):
    """The second expert takes four records at most; who comes later goes to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        wanted = x[:, 0] > 0
        taken = wanted & (wanted.cumsum(0) <= 4)
        return torch.where(taken[:, None], self.experts[1](x), self.experts[0](x))


class Raises(Own):
    """Refuses the batch of a record that is out of range."""

    def before(self, x: Tensor) -> Tensor:
        if bool((x.abs() > 100).any()):
            raise ValueError("out of range")
        return x


class Exits(Own):
    """The same, in another way out."""

    def before(self, x: Tensor) -> Tensor:
        if bool((x.abs() > 100).any()):
            raise SystemExit(1)
        return x


class RemembersInAttribute(Own):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def middle(self, x: Tensor) -> Tensor:
        self.seen.append(float(x.detach().sum()))
        return x * (1 + sum(self.seen))


class RemembersInBuffer(Own):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def middle(self, x: Tensor) -> Tensor:
        self.seen += x.detach().sum(dim=0)
        return x * (1 + self.seen)


class WritesItsWeights(Own):
    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.last.weight += x.mean()
        return x


class WritesItsInput(Own):
    """In place on what may be the stored records themselves."""

    def before(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def hooked(register: Callable[[nn.Sequential], object]) -> Callable[[], nn.Module]:
    """A model that kernels, or the closed form, would take, with something about it that they do not see."""

    def build() -> nn.Module:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))
        register(model)
        return model

    return build


def centered(_: nn.Module, args: object, output: Tensor) -> Tensor:
    return output - output.mean(dim=0)


def doubled(_: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


def one_layer_hooked() -> nn.Module:
    torch.manual_seed(6)
    model = nn.Linear(WIDTH, CLASSES)
    model.register_forward_hook(doubled)
    return model


def replaced_method() -> nn.Module:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(WIDTH, CLASSES))
    model[0].forward = lambda x: functional.linear(x, 3 * model[0].weight)  # type: ignore[method-assign]
    return model


def pruned(model: nn.Sequential) -> None:
    prune.random_unstructured(model[0], "weight", 0.5)


OWN = [
    TrimsToLongest,
    NormalizesOverBatch,
    Winsorizes,
    RoutesWithCapacity,
    Raises,
    Exits,
    RemembersInAttribute,
    RemembersInBuffer,
    WritesItsWeights,
    WritesItsInput,
]
HOOKED: dict[str, Callable[[], nn.Module]] = {
    "forward hook": hooked(lambda model: model[2].register_forward_hook(doubled)),
    "forward hook over the batch": hooked(lambda model: model[0].register_forward_hook(centered)),
    "forward pre-hook": hooked(lambda model: model[2].register_forward_pre_hook(lambda _, args: (3 * args[0],))),
    "backward hook": hooked(lambda model: model[2].register_full_backward_hook(lambda _, given, got: (2 * given[0],))),
    "weight_norm": hooked(lambda model: nn.utils.parametrizations.weight_norm(model[0])),
    "one layer": one_layer_hooked,
}
EVERY = [*OWN, *HOOKED.values()]
NAMES = [*(own.__name__ for own in OWN), *HOOKED]


def records(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Records whose last columns are mostly zero, as of short texts."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, WIDTH)).astype(np.float32)
    features[:, 3:] *= generator.random((count, 1)) < 0.1
    return features, generator.integers(0, CLASSES, count)


def simulated(model: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
    return clipped_gradient_sum(model, Dataset(features, labels, TASK), max_grad_norm=BOUND, device="cpu")


def deployed(model: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
    held = Dataset(features, labels, TASK)
    return AloneSums(model, "cpu")(read_parameters(model), held, BOUND)


WAYS = [simulated, deployed]


def alone(build: Callable[[], nn.Module], features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
    """(n, d): each record's clipped gradient by PyTorch, through a model that is built for it; zeros if it fails."""
    rows = []
    for x, y in zip(torch.from_numpy(features.copy()), torch.from_numpy(labels), strict=True):
        model = build()
        try:
            loss = functional.cross_entropy(model(x[None]), y[None])
        except (ValueError, SystemExit):
            rows.append(torch.zeros(sum(p.numel() for p in model.parameters())))
            continue
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    return clip_by_l2_norm(torch.stack(rows).double().numpy(), BOUND)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", EVERY, ids=NAMES)
def test_a_sum_is_that_of_records_that_never_met(build: Callable[[], nn.Module], way) -> None:
    features, labels = records(20)
    features[7, 0] = 1000  # for this one some raise
    expected = alone(build, features, labels).sum(axis=0)
    np.testing.assert_allclose(way(build(), features, labels), expected, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [1.0, 1000.0, np.nan])
@pytest.mark.parametrize("build", EVERY, ids=NAMES)
def test_one_record_more_moves_the_others_part_by_no_bit(build: Callable[[], nn.Module], value: float, way) -> None:
    """The first, so that all others move on; longer than the others, out of range, or not a number.

    In a simulation, which protects nobody, by rounding alone.
    """
    features, labels = records(20)
    features[0, 0], features[0, 5] = value, 1
    with_it = way(build(), features, labels)
    without = way(build(), features[1:], labels[1:])
    assert np.linalg.norm(with_it - without) <= BOUND * (1 + (1e-9 if way is deployed else 1e-5))
    by_itself = way(build(), features[:1], labels[:1])
    np.testing.assert_allclose(with_it - without, by_itself, rtol=0, atol=0 if way is deployed else 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    build=st.sampled_from(EVERY),
    count=st.integers(1, 12),
    place=st.integers(0, 11),
    value=st.sampled_from([0.0, 3.0, -1e3, 1e30, float("inf"), float("nan")]),
    scale=st.sampled_from([1.0, 1e3, 1e9]),
    seed=st.integers(0, 1000),
)
def test_any_record_anywhere_moves_a_deployed_sum_by_at_most_the_bound(build, count, place, value, scale, seed) -> None:
    features, labels = records(count, seed)
    place %= count
    features[place, seed % WIDTH] = value

    def model() -> nn.Module:
        built: nn.Module = build()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter *= scale
        return built

    with_it = deployed(model(), features, labels)
    without = deployed(model(), np.delete(features, place, axis=0), np.delete(labels, place))
    assert np.linalg.norm(with_it - without) <= BOUND * (1 + 1e-9)


UNSEEN = {
    **HOOKED,
    "replaced method": replaced_method,
    "pruning": hooked(pruned),
    "old weight_norm": hooked(lambda model: nn.utils.weight_norm(model[0])),
}


@pytest.mark.parametrize("build", UNSEEN.values(), ids=UNSEEN)
def test_what_kernels_and_closed_form_do_not_see_keeps_a_model_from_them(build: Callable[[], nn.Module]) -> None:
    assert plain_layers(build()) is None
    assert stack(build(), TASK) is None
    assert not has_closed_form(build())


def test_a_hook_on_a_parameter_or_on_all_modules_keeps_a_model_from_kernels() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, CLASSES))
    assert has_closed_form(model)
    model[0].weight.register_hook(lambda gradient: 2 * gradient)
    assert not has_closed_form(model)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert stack(nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, CLASSES)), TASK) is None
    finally:
        everywhere.remove()


def test_neither_the_model_nor_the_records_nor_pytorchs_generator_are_changed() -> None:
    for build in (RemembersInAttribute, WritesItsWeights, WritesItsInput):
        model, (features, labels) = build(), records(5)
        before, kept, state = read_parameters(model), features.copy(), torch.get_rng_state()
        simulated(model, features, labels)
        np.testing.assert_array_equal(read_parameters(model), before)
        np.testing.assert_array_equal(features, kept)
        assert torch.equal(torch.get_rng_state(), state)
        assert not getattr(model, "seen", [])


def test_a_model_that_vmap_follows_is_computed_side_by_side_and_any_other_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop of 300 records takes as many forward passes of one; a class whose forward pass counts its calls."""
    calls = []
    forward = nn.Linear.forward

    def counted(layer: nn.Linear, x: Tensor) -> Tensor:
        calls.append(1)
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    features, labels = records(300)
    simulated(NormalizesOverBatch(), features, labels)
    assert len(calls) < 50
    calls.clear()
    simulated(RemembersInAttribute(), features, labels)
    assert len(calls) >= 600


def test_records_that_cannot_be_computed_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = records(9)
    features[2:4, 0] = 1000
    simulated(Raises(), features, labels)
    assert "2 of 9 records" in caplog.text


def test_more_records_than_63_bits_hold_are_summed_exactly():
    total = ExactSum(3)
    for _ in range(1 << 10):
        total.add(np.array([(1 << 62) - 1, -(1 << 62) + 1, 5]))
    assert total.nearest().tolist() == [float(((1 << 62) - 1) << 10), -float(((1 << 62) - 1) << 10), 5 << 10]
