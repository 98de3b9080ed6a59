"""The device that a run names, or the best one there is."""

import pytest
import torch

from fedlearn.errors import ConfigError
from fedlearn.training.device import pick_device


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
