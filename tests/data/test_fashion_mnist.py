import gzip
import tracemalloc

import numpy as np
import pytest

from fedlearn.data import DataOptions, load_dataset
from fedlearn.data.fashion_mnist import find_folder, read_idx, usual_folders
from fedlearn.errors import ConfigError, DataError


def idx_bytes(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_files(folder, *, zipped=True, train=6, test=4, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.arange(count * 784).reshape(count, 28, 28) % 256
        classes = np.arange(count) % 10 if labels is None else labels[:count]
        for kind, array in (("images-idx3", pixels), ("labels-idx1", classes)):
            content = idx_bytes(np.asarray(array))
            name = f"{part}-{kind}-ubyte"
            (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def load(path, **changes):
    return load_dataset(DataOptions(dataset="fashion-mnist", path=str(path), **changes))


@pytest.mark.parametrize("zipped", [True, False])
def test_pixels_become_shares_of_255_and_the_test_part_is_its_own(tmp_path, zipped):
    loaded = load(write_files(tmp_path, zipped=zipped))
    assert loaded.train.features.shape == (6, 1, 28, 28)
    assert loaded.train.features.dtype == np.float32
    np.testing.assert_array_equal(loaded.train.features.ravel()[:256], np.arange(256, dtype=np.float32) / 255)
    assert loaded.test.labels.tolist() == [0, 1, 2, 3]
    assert len(loaded.train.task.classes) == 10


@pytest.mark.parametrize("below", ["FashionMNIST/raw", "raw", "usr/share/datasets/fashion-mnist"])
def test_files_are_found_below_the_folder_given(tmp_path, below):
    write_files(tmp_path / below)
    assert len(load(tmp_path).train) == 6


def test_first_usual_folder_that_has_the_files_is_taken(tmp_path):
    write_files(tmp_path / "second"), write_files(tmp_path / "third")
    usual = [tmp_path / name for name in ("first", "second", "third")]
    assert find_folder(None, usual) == tmp_path / "second"


def test_a_given_path_is_the_only_place_that_counts(tmp_path):
    with pytest.raises(ConfigError, match="not in data"):
        find_folder(str(tmp_path / "empty"), [write_files(tmp_path / "full")])


def test_usual_folders_are_the_package_then_make_data_then_torchvision():
    usual = [str(folder) for folder in usual_folders()]
    assert usual[0] == "/usr/share/datasets/fashion-mnist"
    assert usual[1].endswith("/.data/usr/share/datasets/fashion-mnist")
    assert "data/FashionMNIST/raw" in usual


def test_another_share_is_of_all_records(tmp_path):
    loaded = load(write_files(tmp_path), public_test=0.5)
    assert (len(loaded.train), len(loaded.test)) == (5, 5)
    assert load(tmp_path, public_test=0).test is None


@pytest.mark.parametrize("given", [True, False])
def test_files_that_are_nowhere_are_one_sentence_with_three_ways(tmp_path, given):
    ways = "`make data`.*dataset-fashion-mnist.*data.path to a folder with its four idx files"
    with pytest.raises(ConfigError, match=ways):
        find_folder(str(tmp_path) if given else None, [tmp_path])


def truncated_gzip(path):
    path.write_bytes(path.read_bytes()[:-20])


def not_gzip(path):
    path.write_bytes(b"hello")


def wrong_magic(path):
    path.write_bytes(gzip.compress(b"\0\0\x0d\3" + bytes(12)))


def short_header(path):
    path.write_bytes(gzip.compress(b"\0\0"))


def too_few_bytes(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def too_many_bytes(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0"))


def huge_promise(path):
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + b"\xff" * 12))


def other_size(path):
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((6, 14, 14)))))


def fewer_records(path):
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((5, 28, 28)))))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (truncated_gzip, "cannot be read"),
        (not_gzip, "cannot be read"),
        (wrong_magic, "is not an idx file"),
        (short_header, "is not an idx file"),
        (too_few_bytes, "fewer bytes"),
        (too_many_bytes, "more bytes"),
        (huge_promise, "promises the shape"),
        (other_size, "28 x 28 pixels"),
        (fewer_records, "as many pictures"),
    ],
)
def test_broken_file_is_one_sentence(tmp_path, spoil, expected):
    write_files(tmp_path)
    spoil(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=expected) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_label_out_of_range_names_its_row(tmp_path):
    with pytest.raises(DataError, match="train, row 3 has the label 10"):
        load(write_files(tmp_path, labels=np.array([0, 1, 10, 3, 4, 5])))


def test_missing_second_file_is_named(tmp_path):
    (write_files(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no file t10k-labels-idx1-ubyte"):
        load(tmp_path)


def test_zip_bomb_is_unpacked_no_further_than_its_header_promises(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(3)) + bytes(10**8), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(DataError, match="more bytes"):
        read_idx(path, dimensions=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7
