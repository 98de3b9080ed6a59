"""How large a model is, found before memory is taken for it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.config.run_config import RunConfig
from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import layout_of
from fedlearn.round.source import model_dimension, start_model
from fedlearn.task.classification import Classification

LIKE = Dataset(np.zeros((1, 12), np.float32), np.zeros(1, np.int64), Classification(("a", "b", "c")))
OWN = """
import torch
from torch import nn

def reading(*, input_shape, classes, most):
    width = int(torch.linspace(1, most, 5)[-1].item())
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, classes))

def half_frozen(*, input_shape, classes, most):
    model = nn.Sequential(nn.Linear(12, most), nn.Tanh(), nn.Linear(most, classes))
    model[0].requires_grad_(False)
    return model

def batched(*, input_shape, classes, most):
    return nn.Sequential(nn.Linear(12, most), nn.BatchNorm1d(most), nn.Linear(most, classes))
"""


@pytest.fixture
def search(tmp_path: Path):
    (tmp_path / "own_sizes.py").write_text(OWN)
    yield (tmp_path,)
    sys.modules.pop("own_sizes", None)


def asked(builder: str, most: int, mode: str = "record-distributed") -> RunConfig:
    changes = [f'model.name="own_sizes:{builder}"', f"model.options.most={most}", f"privacy.mode={mode}"]
    return RunConfig.load("digits", changes)


def test_a_builder_that_reads_a_tensors_value_has_its_size(search) -> None:
    config = asked("reading", 7)
    assert model_dimension(config, LIKE, search=search) == 12 * 7 + 7 + 7 * 3 + 3
    assert layout_of(start_model(config, LIKE, search=search)).dimension == 12 * 7 + 7 + 7 * 3 + 3


@pytest.mark.parametrize("builder", ["reading", "half_frozen"])
def test_a_model_too_large_is_refused_before_memory_is_taken_for_it(search, builder: str) -> None:
    with pytest.raises(ConfigError, match="entries or more, frozen ones included; expected at most"):
        model_dimension(asked(builder, 10**9), LIKE, search=search)


def test_what_is_frozen_counts_for_memory_and_not_for_the_vector(search) -> None:
    assert model_dimension(asked("half_frozen", 7), LIKE, search=search) == 7 * 3 + 3


@pytest.mark.parametrize("mode", ["none", "record-distributed"])
def test_a_model_is_checked_in_every_mode(search, mode: str) -> None:
    with pytest.raises(ConfigError, match=r"layer 1 \(BatchNorm1d\) .* do not travel; use torch.nn.GroupNorm"):
        start_model(asked("batched", 7, mode), LIKE, search=search)
