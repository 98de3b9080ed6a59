"""What a private mode refuses in a model, and with which sentence."""

from collections.abc import Callable
from typing import Any

import opacus
import pytest
import torch
from torch import Tensor, nn

from fedlearn.errors import ConfigError
from fedlearn.training.model_check import check_private_model
from fedlearn.vector import read_parameters

SHAPE = (1, 6, 6)


class Around(nn.Module):
    """A good network with a layer, or a function of the features, in its middle."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.middle = middle
        self.last = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        return self.last(self.middle(torch.tanh(self.first(images))).flatten(1))


class Counter(nn.Module):
    """Remembers the records that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """The features, unchanged."""
        self.seen += features.detach().sum()
        return features


class Frozen(Around):
    """A network whose first layer is not trained."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.first.weight.requires_grad_(False)


class Spare(Around):
    """A network with a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.spare = nn.Parameter(torch.zeros(3))


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        return self.last(self.layer(images.squeeze(1))[0][:, -1])


class Attentive(nn.Module):
    """Attends from row to row."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(36, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        rows = images.squeeze(1)
        return self.last(self.attention(rows, rows, rows)[0].flatten(1))


class Borrowing(Around):
    """Uses a layer's weight without calling the layer, where Opacus' hooks see nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        features = torch.tanh(self.first(images)).flatten(1)
        return nn.functional.linear(features, self.last.weight, self.last.bias)


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Around(nn.BatchNorm2d(4)), r"layer middle \(BatchNorm2d\).*use torch.nn.GroupNorm"),
    (lambda: Around(nn.SyncBatchNorm(4)), r"layer middle \(SyncBatchNorm\).*use torch.nn.GroupNorm"),
    (lambda: Around(nn.BatchNorm2d(4).eval()), "GroupNorm"),
    (lambda: Around(nn.InstanceNorm2d(4, track_running_stats=True)), r"InstanceNorm2d\).*track_running_stats=False"),
    (lambda: Around(nn.Dropout(0.5)), r"layer middle \(Dropout\).*leave it out"),
    (lambda: Around(nn.functional.dropout), "draws random numbers; leave them out"),
    (lambda: Around(lambda x: x - x.mean(dim=0)), "depends on the other records.*GroupNorm"),
    (lambda: Around(lambda x: x / len(x)), "depends on the other records"),
    (lambda: Around(lambda x: x + 0.1 * x.flip(0)), "depends on the other records"),
    (lambda: Around(Counter()), "buffer middle.seen changes.*GroupNorm"),
    (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 3, 6)), nn.Flatten()), "buffer"),
    (Frozen, "parameter first.weight is frozen"),
    (Spare, "parameter spare is not used.*remove it"),
    (lambda: Recurrent(nn.LSTM(6, 5, batch_first=True)), r"layer layer \(LSTM\).*use opacus.layers.DPLSTM"),
    (lambda: Recurrent(nn.GRU(6, 5, batch_first=True)), "use opacus.layers.DPGRU"),
    (Attentive, "use opacus.layers.DPMultiheadAttention"),
    (lambda: Borrowing(nn.Identity()), "Opacus"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), r"gives \(1, 4\) for 1 record\(s\); expected \(1, 3\)"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(35, 3)), r"fails on 1 record\(s\) of shape \(1, 6, 6\)"),
]


@pytest.mark.parametrize(("build", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_a_model_that_cannot_be_private_is_refused(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        check_private_model(build(), input_shape=SHAPE, classes=3)
    assert "\n" not in str(refusal.value)


def test_r09_buffers_that_learn_from_records_are_refused_wherever_they_are_and_constant_ones_pass() -> None:
    for learning in (nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval(), Counter()):
        with pytest.raises(ConfigError, match="GroupNorm"):
            check_private_model(Around(learning), input_shape=SHAPE, classes=3)
    constant = Around(nn.Identity())
    constant.register_buffer("mean", torch.tensor(0.3))
    check_private_model(constant, input_shape=SHAPE, classes=3)


PASSING: list[Callable[[], Any]] = [
    lambda: Around(nn.GroupNorm(2, 4)),
    lambda: Around(nn.InstanceNorm2d(4, affine=True)),
    lambda: Around(nn.Dropout(0.0)),
    lambda: Around(nn.LayerNorm([4, 4, 4])),
    lambda: Recurrent(opacus.layers.DPLSTM(6, 5, batch_first=True)),
    lambda: Around(nn.GroupNorm(2, 4)).double(),
]


@pytest.mark.parametrize("build", PASSING)
def test_a_model_that_keeps_records_apart_passes(build: Callable[[], nn.Module]) -> None:
    check_private_model(build(), input_shape=SHAPE, classes=3)


def test_the_check_leaves_model_and_generator_as_they_were() -> None:
    model = Around(nn.GroupNorm(2, 4)).eval()
    before, state = read_parameters(model), torch.get_rng_state()
    check_private_model(model, input_shape=SHAPE, classes=3)
    assert not model.training
    assert (read_parameters(model) == before).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
