"""The examples in docstrings are run: what they show is what happens."""

import doctest
from types import ModuleType

import pytest

from fedlearn.privacy import mechanisms
from fedlearn.task import task


@pytest.mark.parametrize("module", [mechanisms, task], ids=lambda module: module.__name__)
def test_an_example_shows_what_happens(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
