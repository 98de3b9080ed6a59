"""What a mode refuses in a model, and with which sentence."""

from collections.abc import Callable
from typing import Any

import opacus
import pytest
import torch
from torch import Tensor, nn

from fedlearn.errors import ConfigError
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.task.classification import Classification
from fedlearn.training.model_check import check_model

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
    """Uses a layer's weight without calling the layer, where hooks of layers see nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        features = torch.tanh(self.first(images)).flatten(1)
        return nn.functional.linear(features, self.last.weight, self.last.bias)


class Sequenced(Around):
    """Has the first dimension of Opacus' attention be that of the rows, as its default is."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.attention = opacus.layers.DPMultiheadAttention(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        rows = torch.tanh(self.first(images)).flatten(2).permute(2, 0, 1)
        return self.last(self.attention(rows, rows, rows)[0].permute(1, 2, 0).flatten(1))


def hooked_gradient() -> nn.Module:
    model = Around(nn.Identity())
    model.last.weight.register_hook(lambda gradient: 2 * gradient)
    return model


class Given(nn.Module):
    """Gives what a function makes of its one layer's logits."""

    def __init__(self, made: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.made = nn.Linear(36, 3), made

    def forward(self, images: Tensor) -> object:
        """Whatever it makes."""
        return self.made(self.layer(images.flatten(1)))


class Unreal(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(36, 3, dtype=torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 3)."""
        return (images.flatten(1).to(torch.complex64) @ self.weight).real


# What no mode can train.
REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Around(nn.BatchNorm2d(4)), r"layer middle \(BatchNorm2d\).*use torch.nn.GroupNorm"),
    (lambda: Around(nn.SyncBatchNorm(4)), r"layer middle \(SyncBatchNorm\).*use torch.nn.GroupNorm"),
    (lambda: Around(nn.BatchNorm2d(4).eval()), "GroupNorm"),
    (lambda: Around(nn.InstanceNorm2d(4, track_running_stats=True)), r"InstanceNorm2d\).*track_running_stats=False"),
    (lambda: Around(Counter()), "buffer middle.seen changes.*GroupNorm"),
    (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 3, 6)), nn.Flatten()), "buffer"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), r"gives \(1, 4\) for 1 record\(s\); expected.* \(1, 3\)"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(35, 3)), r"fails on 1 record\(s\) of shape \(1, 6, 6\)"),
    (lambda: Given(lambda logits: (logits, logits)), r"gives a tuple for 1 record\(s\); expected one tensor of logits"),
    (lambda: Given(lambda logits: logits[:, 0]), r"gives \(1,\) for 1 record\(s\).*a number for each class"),
    (lambda: Given(lambda logits: logits[:, :1]), r"gives \(1, 1\) for 1 record\(s\).*a number for each class"),
    (lambda: Given(lambda logits: logits / 0), "logits that are not finite for made-up records"),
    (lambda: Given(lambda logits: (logits - logits).sqrt()), "gradient of .* is not finite for made-up records"),
    (lambda: Given(lambda logits: logits.detach()), "the model has no gradient"),
    (lambda: Given(lambda logits: logits.argmax(1)[:, None] + torch.arange(3)), "gives logits of torch.int64"),
    (Unreal, "parameter weight is of torch.complex64; expected real numbers"),
    (lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(36, 3))), "parametrizations.weight_norm"),
]

# What cannot be trained where anything is private, and where the unit is the record.
REFUSED_IF_PRIVATE: list[tuple[Callable[[], nn.Module], str]] = [
    (Spare, "parameter spare is not used.*remove it"),
]
REFUSED_BY_RECORD: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Around(nn.Dropout(0.5)), r"layer middle \(Dropout\).*leave it out"),
    (lambda: Around(nn.functional.dropout), "draws random numbers; leave them out"),
    (lambda: Recurrent(nn.LSTM(6, 5, 2, batch_first=True, dropout=0.5)), "draws random numbers; leave them out"),
    (lambda: Around(lambda x: x - x.mean(dim=0)), "depends on the other records.*GroupNorm"),
    (lambda: Around(lambda x: x / len(x)), "depends on the other records"),
    (lambda: Around(lambda x: x + 0.1 * x.flip(0)), "depends on the other records"),
    (lambda: Around(nn.Identity()).half(), "is of torch.float16, whose rounding.*use torch.float32"),
    (lambda: Around(nn.Identity()).bfloat16(), "is of torch.bfloat16"),
    (hooked_gradient, "parameter last.weight has a hook on its gradient"),
]
UNITS = (None, PrivacyUnit.CLIENT, PrivacyUnit.RECORD)


def check(model: nn.Module, unit: PrivacyUnit | None) -> None:
    check_model(model, input_shape=SHAPE, task=Classification(("a", "b", "c")), unit=unit)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("build", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_a_model_that_cannot_be_trained_is_refused_in_every_mode(
    build: Callable[[], nn.Module], sentence: str, unit: PrivacyUnit | None
) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        check(build(), unit)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("build", "sentence"), REFUSED_IF_PRIVATE + REFUSED_BY_RECORD)
def test_a_model_that_cannot_be_private_is_refused_where_it_has_to_be(
    build: Callable[[], nn.Module], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        check(build(), PrivacyUnit.RECORD)
    assert "\n" not in str(refusal.value)
    check(build(), None)
    if sentence in dict(map(reversed, REFUSED_BY_RECORD)):
        check(build(), PrivacyUnit.CLIENT)
    else:
        with pytest.raises(ConfigError, match=sentence):
            check(build(), PrivacyUnit.CLIENT)


def test_r09_buffers_that_learn_from_records_are_refused_wherever_they_are_and_constant_ones_pass() -> None:
    for learning in (nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval(), Counter()):
        with pytest.raises(ConfigError, match="GroupNorm"):
            check(Around(learning), PrivacyUnit.RECORD)
    constant = Around(nn.Identity())
    constant.register_buffer("mean", torch.tensor(0.3))
    check(constant, PrivacyUnit.RECORD)


PASSING: list[Callable[[], Any]] = [
    Frozen,
    Attentive,
    Sequenced,
    lambda: Borrowing(nn.Identity()),
    lambda: Recurrent(nn.LSTM(6, 5, batch_first=True)),
    lambda: Recurrent(nn.GRU(6, 5, batch_first=True)),
    lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3)
    ),
    lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3)),
    lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(36, 3))),
    lambda: Around(nn.GroupNorm(2, 4)),
    lambda: Around(nn.InstanceNorm2d(4, affine=True)),
    lambda: Around(nn.Dropout(0.0)),
    lambda: Around(nn.LayerNorm([4, 4, 4])),
    lambda: Recurrent(opacus.layers.DPLSTM(6, 5, batch_first=True)),
    lambda: Around(nn.GroupNorm(2, 4)).double(),
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("build", PASSING)
def test_a_model_that_keeps_records_apart_passes(build: Callable[[], nn.Module], unit: PrivacyUnit | None) -> None:
    check(build(), unit)


def test_the_check_leaves_model_and_generator_as_they_were() -> None:
    model = Around(nn.GroupNorm(2, 4)).eval()
    before, state = read_parameters(model), torch.get_rng_state()
    check(model, PrivacyUnit.RECORD)
    assert not model.training
    assert (read_parameters(model) == before).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
