"""Features are computed once and kept under the hash of the records and the recipe."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.data.feature_cache import cache_folder, cached
from fedlearn.errors import ConfigError

RECORDS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLEARN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Doubling:
    """Writes records times two, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, records: NDArray[np.float32], recipe: str = "double") -> NDArray[np.float32]:
        """The cached features of `records`."""

        def compute(out: NDArray[np.float32]) -> None:
            self.calls += 1
            out[:] = 2 * records

        return cached(recipe, records, shape=records.shape, compute=compute)


def test_the_second_time_nothing_is_computed() -> None:
    doubling = Doubling()
    first, second = doubling(RECORDS), doubling(RECORDS.copy())
    assert doubling.calls == 1
    assert np.array_equal(first, 2 * RECORDS)
    assert np.array_equal(second, 2 * RECORDS)
    assert second.dtype == np.float32


def test_other_records_and_other_recipes_have_their_own_features() -> None:
    doubling = Doubling()
    doubling(RECORDS)
    doubling(RECORDS + 1)
    doubling(RECORDS.reshape(2, 6))
    doubling(RECORDS, "double again")
    assert doubling.calls == 4


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_replaced(content: bytes) -> None:
    doubling = Doubling()
    doubling(RECORDS)
    (file,) = cache_folder().iterdir()
    file.write_bytes(content)
    assert np.array_equal(doubling(RECORDS), 2 * RECORDS)


def test_a_pickle_is_never_loaded() -> None:
    doubling = Doubling()
    doubling(RECORDS)
    (file,) = cache_folder().iterdir()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    assert np.array_equal(doubling(RECORDS), 2 * RECORDS)
    assert doubling.calls == 2


def test_writing_to_the_features_leaves_the_file_alone() -> None:
    doubling = Doubling()
    doubling(RECORDS)[:] = 0
    assert np.array_equal(doubling(RECORDS), 2 * RECORDS)


def test_a_computation_that_fails_leaves_no_file() -> None:
    def fail(out: NDArray[np.float32]) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cached("double", RECORDS, shape=(4, 3), compute=fail)
    assert not list(cache_folder().iterdir())


def test_folder_and_files_are_for_their_owner_alone() -> None:
    Doubling()(RECORDS)
    (file,) = cache_folder().iterdir()
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_is_a_sentence(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="set FEDLEARN_HOME to a folder that can be written"):
        Doubling()(RECORDS)
