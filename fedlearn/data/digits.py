"""digits: 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn (UCI, optical recognition)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import DataOptions, Dataset, Loaded, hold_out, refuse_unused
from fedlearn.task.classification import Classification

__all__ = ["TEST_SHARE", "load_digits", "scale_digits"]

TEST_SHARE = 0.2  # ceil: 360 of 1,797 records, so that 1,437 are left to train on


def scale_digits(pixels: NDArray[np.float64]) -> NDArray[np.float32]:
    """Pixels 0..16, (n, 8, 8), as features (n, 1, 8, 8): pixels/16 - 0.3, a public centering near the mean ink."""
    return (pixels / 16 - 0.3).astype(np.float32)[:, np.newaxis]


def load_digits(options: DataOptions) -> Loaded:
    """1,437 records to train on and 360 to test with, fixed whatever the seed; features (n, 1, 8, 8), ten classes.

    `options.public_test` holds out another share than the 20 % of the default; 0 holds out nothing.
    """
    refuse_unused(options)
    return hold_out(_records(), TEST_SHARE if options.public_test is None else float(options.public_test))


@lru_cache(maxsize=1)
def _records() -> Dataset:
    """All 1,797, read once: a deployed agent asks for their shape with each configuration."""
    from sklearn import datasets

    raw = datasets.load_digits()
    features, labels = scale_digits(raw.images), raw.target.astype(np.int64)
    for array in (features, labels):
        array.flags.writeable = False  # they are everybody's
    return Dataset(features, labels, Classification(tuple("0123456789")))
