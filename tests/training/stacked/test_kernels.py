"""Each stacked kernel against PyTorch's own gradients, in float64: sums, and clipping record by record."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedlearn.task.classification import Classification
from fedlearn.training.stacked.model import StackedModel, stack

TASK = Classification(("a", "b", "c"))

CLIENTS, RECORDS, CLASSES = 3, 5, 4


def flat(width: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(width, CLASSES)]


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(0, 7, shape)


# name -> layers, shape of a record
NETWORKS: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {
    "linear": (flat(6), (6,)),
    "linear without bias": ([nn.Linear(6, CLASSES, bias=False)], (6,)),
    "two layers": ([nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)], (6,)),
    "convolution": ([nn.Conv2d(2, 3, 3), *flat(48)], (2, 6, 6)),
    "stride, padding, no bias": ([nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 2), bias=False), *flat(63)], (2, 5, 4)),
    "whole steps of a stride": ([nn.Conv2d(1, 3, (4, 2), 2, padding=(2, 1)), *flat(48)], (1, 7, 7)),
    "below a stride": ([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 2, stride=2, padding=1), *flat(48)], (2, 7, 6)),
    "two convolutions": ([nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, 2), *flat(18)], (1, 6, 6)),
    "largest of a window": ([nn.Conv2d(1, 3, 1), nn.MaxPool2d(2), *flat(27)], (1, 6, 6)),
    "overlapping windows": ([nn.Conv2d(1, 3, 1), nn.MaxPool2d(3, stride=(1, 2)), *flat(24)], (1, 6, 6)),
    "mean of a window": ([nn.Conv2d(1, 3, 1), nn.AvgPool2d((2, 3), stride=2), *flat(18)], (1, 6, 6)),
    "groups": ([nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Sigmoid(), *flat(64)], (1, 4, 4)),
    "groups without weights": ([nn.Conv2d(1, 4, 1), nn.GroupNorm(1, 4, affine=False), *flat(64)], (1, 4, 4)),
    "groups of a vector": ([nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.ReLU(), nn.Linear(4, CLASSES)], (6,)),
    "words": ([nn.Embedding(7, 3), *flat(12)], (4,)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


class Looped:
    """The same model, client by client and record by record, by PyTorch."""

    def __init__(self, model: nn.Module, parameters: list[Tensor]) -> None:
        self.model, self.parameters = model, parameters

    def gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(clients, records, d)."""
        rows = []
        for client in range(CLIENTS):
            own = dict(zip(dict(self.model.named_parameters()), (p[client] for p in self.parameters), strict=True))
            own = {name: value.clone().requires_grad_() for name, value in own.items()}
            for record in range(RECORDS):
                logits = torch.func.functional_call(self.model, own, (inputs[client, record][None],))
                found = torch.autograd.grad(
                    functional.cross_entropy(logits, targets[client, record][None]), list(own.values())
                )
                rows.append(torch.cat([part.flatten() for part in found]))
        return torch.stack(rows).view(CLIENTS, RECORDS, -1)


def case(name: str) -> tuple[nn.Module, list[Tensor], Tensor, Tensor]:
    torch.manual_seed(3)
    layers, shape = NETWORKS[name]
    model = nn.Sequential(*layers).double()
    parameters = [torch.randn(CLIENTS, *p.shape, dtype=torch.float64) * 0.4 for p in model.parameters()]
    made = whole_numbers if name == "words" else lambda *s: torch.randn(*s, dtype=torch.float64)
    return model, parameters, made(CLIENTS, RECORDS, *shape), torch.randint(0, CLASSES, (CLIENTS, RECORDS))


def joined(stacked: StackedModel, rows: Tensor) -> Tensor:
    return torch.cat([part.flatten(1) for part in stacked.unpack(rows)], dim=1)


@every_network
def test_weighted_sums_are_those_of_autograd(name: str) -> None:
    model, parameters, inputs, targets = case(name)
    stacked = stack(model, TASK)
    assert stacked is not None
    weights = torch.rand(CLIENTS, RECORDS, dtype=torch.float64)
    expected = (weights[..., None] * Looped(model, parameters).gradients(inputs, targets)).sum(dim=1)
    found = joined(stacked, stacked.gradient(stacked.pack(parameters), inputs, targets, weights))
    assert (found - expected).abs().max() <= 1e-12


@every_network
def test_every_record_is_clipped_by_itself(name: str) -> None:
    model, parameters, inputs, targets = case(name)
    stacked = stack(model, TASK)
    assert stacked is not None
    present = torch.ones(CLIENTS, RECORDS, dtype=torch.float64)
    present[1, 2:] = 0
    rows = Looped(model, parameters).gradients(inputs, targets)
    norms = rows.norm(dim=2)
    for bound in (float(norms.min()) / 2, float(norms.median()), float(norms.max()) * 2):
        factors = torch.clamp(bound / norms, max=1) * present
        found = joined(stacked, stacked.clipped_sum(stacked.pack(parameters), inputs, targets, present, bound))
        assert (found - (factors[..., None] * rows).sum(dim=1)).abs().max() <= 1e-12


def test_of_equal_entries_the_first_gets_the_gradient_as_in_pytorch() -> None:
    model, parameters, inputs, targets = case("overlapping windows")
    stacked = stack(model, TASK)
    assert stacked is not None
    level = torch.round(inputs)  # many ties
    ones = torch.ones(CLIENTS, RECORDS, dtype=torch.float64)
    expected = Looped(model, parameters).gradients(level, targets).sum(dim=1)
    assert (
        joined(stacked, stacked.gradient(stacked.pack(parameters), level, targets, ones)) - expected
    ).abs().max() <= 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_record_that_is_not_finite_counts_as_zeros_and_leaves_the_others_alone(bad: float) -> None:
    model, parameters, inputs, targets = case("two convolutions")
    stacked = stack(model, TASK)
    assert stacked is not None
    spoiled = inputs.clone()
    spoiled[0, 1] = bad
    present = torch.ones(CLIENTS, RECORDS, dtype=torch.float64)
    without = present.clone()
    without[0, 1] = 0
    found = joined(stacked, stacked.clipped_sum(stacked.pack(parameters), spoiled, targets, present, 0.5))
    expected = joined(stacked, stacked.clipped_sum(stacked.pack(parameters), inputs, targets, without, 0.5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_long_input_does_not_hide_a_gradient_whose_other_factor_has_no_square_in_float32() -> None:
    """Weights that a coordinator chose: residuals of 1e-23, records of 1e18, and so a gradient of length 1.4e-5."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False))
    stacked = stack(model, TASK)
    assert stacked is not None
    inputs, targets = torch.full((1, 1, 1), 1e18), torch.zeros(1, 1, dtype=torch.int64)
    rows = stacked.pack([torch.tensor([[[53e-18], [0.0], [0.0]]])])
    unclipped = stacked.gradient(rows, inputs, targets, torch.ones(1, 1)).double().norm()
    assert 1e-5 < unclipped < 2e-5
    found = stacked.clipped_sum(rows, inputs, targets, torch.ones(1, 1), 1e-6).double().norm()
    assert found == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize("long", [1.3e7, 1e9, 3e12, 1.5e15])
def test_a_gradient_too_long_for_float32_counts_for_no_more_than_the_bound(long: float) -> None:
    """Its factor would be so small that float32 knows it to a few bits, and the product could be twice the bound."""
    model = nn.Sequential(*(nn.Linear(width, out, bias=False) for width, out in ((1, 1), (1, 1), (1, 2))))
    stacked = stack(model, TASK)
    assert stacked is not None
    rows = stacked.pack([torch.tensor(w)[None] for w in ([[long]], [[1e-3 / long]], [[1e38], [0.0]])])
    for bound in (1.0, 1e-3):
        found = stacked.clipped_sum(rows, torch.ones(1, 1, 1), torch.ones(1, 1).long(), torch.ones(1, 1), bound)
        assert found.double().norm() <= bound * (1 + 2**-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, dilation=2),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.MaxPool2d(2, padding=1),
        nn.LSTM(2, 2),
        nn.Dropout(0.5),
        nn.Flatten(2),
    ],
)
def test_a_layer_without_a_kernel_leaves_the_model_to_the_loop(layer: nn.Module) -> None:
    assert stack(nn.Sequential(layer, nn.Linear(4, 2)), TASK) is None


def test_shared_and_frozen_parameters_leave_the_model_to_the_loop() -> None:
    shared = nn.Linear(4, 4)
    assert stack(nn.Sequential(shared, nn.Tanh(), shared), TASK) is None
    frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    frozen[0].weight.requires_grad_(False)
    assert stack(frozen, TASK) is None


def test_a_subclass_of_a_known_layer_is_not_taken_for_it() -> None:
    class Doubled(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * super().forward(values)

    assert stack(nn.Sequential(Doubled(4, 2)), TASK) is None
    assert np.isfinite(Doubled(4, 2)(torch.ones(1, 4)).detach().numpy()).all()
