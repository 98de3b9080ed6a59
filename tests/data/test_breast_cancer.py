import re

import numpy as np
from sklearn import datasets

from fedlearn.data import DataOptions, load_dataset
from fedlearn.data.breast_cancer import COLUMNS


def test_bounds_are_those_that_the_public_description_prints():
    printed = re.findall(r"^[a-z ]+\([a-z ]+\): +([\d.]+) +([\d.]+)$", datasets.load_breast_cancer().DESCR, re.M)
    assert [(float(low), float(high)) for low, high in printed] == [(c.low, c.high) for c in COLUMNS.values()]


def test_split_and_classes_are_fixed():
    loaded = load_dataset(DataOptions(dataset="breast-cancer"))
    order = np.random.RandomState(0).permutation(569)
    assert (len(loaded.train), len(loaded.test)) == (455, 114)
    np.testing.assert_array_equal(loaded.train.labels, datasets.load_breast_cancer().target[order[:455]])
    assert loaded.train.task.classes == ("malignant", "benign")
    assert loaded.train.input_shape == (30,)
