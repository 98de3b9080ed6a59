"""The fingerprint of a set of records: the same for the same records, and nothing without the salt."""

import numpy as np
import pytest

from fedlearn.data.dataset import Dataset
from fedlearn.data.fingerprint import fingerprint_of

SALT = bytes(range(32))


def some(features, labels):
    return Dataset(np.array(features, dtype=np.float32), np.array(labels, dtype=np.int64), ("no", "yes"))


@pytest.fixture
def records():
    return some([[1, 2], [3, 4], [3, 4]], [0, 1, 0])


def test_the_same_records_in_another_order_have_the_same_fingerprint(records):
    again = some([[3, 4], [1, 2], [3, 4]], [0, 0, 1])
    assert fingerprint_of(again, SALT) == fingerprint_of(records, SALT)


@pytest.mark.parametrize(
    "other",
    [
        some([[1, 2], [3, 4]], [0, 1]),
        some([[1, 2], [3, 4], [3, 4], [3, 4]], [0, 1, 0, 0]),
        some([[1, 2], [3, 4], [3, 4]], [1, 1, 0]),
        some([[1, 2], [3, 4], [3, 5]], [0, 1, 0]),
        some(np.zeros((0, 2)), []),
    ],
)
def test_one_record_more_less_or_changed_gives_another(records, other):
    assert fingerprint_of(other, SALT) != fingerprint_of(records, SALT)


def test_another_salt_gives_another(records):
    assert len({fingerprint_of(records, bytes([byte]) * 32) for byte in range(5)}) == 5
