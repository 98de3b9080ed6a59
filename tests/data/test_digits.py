import numpy as np
import pytest
from sklearn import datasets

from fedlearn.data import DataOptions, load_dataset
from fedlearn.errors import ConfigError


def test_split_is_the_first_1437_of_the_constant_permutation():
    loaded = load_dataset(DataOptions(dataset="digits"))
    raw = datasets.load_digits()
    order = np.random.RandomState(0).permutation(1797)
    assert (len(loaded.train), len(loaded.test)) == (1437, 360)
    np.testing.assert_array_equal(loaded.train.labels, raw.target[order[:1437]])
    expected = (raw.data[order[1437:]] / 16 - 0.3).astype(np.float32)
    np.testing.assert_array_equal(loaded.test.features.reshape(360, 64), expected)


def test_records_are_images_of_one_channel_with_ten_classes():
    train = load_dataset(DataOptions(dataset="digits")).train
    assert train.input_shape == (1, 8, 8)
    assert train.features.dtype == np.float32
    assert train.labels.dtype == np.int64
    assert train.task.classes == tuple("0123456789")


def test_share_zero_holds_nothing_out():
    loaded = load_dataset(DataOptions(dataset="digits", public_test=0))
    assert (len(loaded.train), loaded.test) == (1797, None)


def test_another_share_takes_ceil_of_it():
    assert len(load_dataset(DataOptions(dataset="digits", public_test=0.1)).test) == 180


@pytest.mark.parametrize("share", [1, 1.5, -0.1, float("nan")])
def test_impossible_share_is_refused(share):
    with pytest.raises(ConfigError, match="public_test"):
        load_dataset(DataOptions(dataset="digits", public_test=share))


@pytest.mark.parametrize(("key", "value"), [("path", "x.csv"), ("label", "y"), ("public_test", "x.csv")])
def test_key_without_use_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"data.{key}"):
        load_dataset(DataOptions(dataset="digits", **{key: value}))


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(ConfigError, match=r"expected one of digits.*did you mean digits"):
        load_dataset(DataOptions(dataset="digit"))


def test_take_keeps_classes_and_order():
    train = load_dataset(DataOptions(dataset="digits")).train
    few = train.take(np.array([5, 2]))
    np.testing.assert_array_equal(few.labels, train.labels[[5, 2]])
    assert few.task.classes == train.task.classes
    assert len(train.take(np.array([], dtype=np.int64))) == 0
