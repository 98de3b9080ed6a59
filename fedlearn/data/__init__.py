"""Data sets by name. To add one: write `data/NAME.py` with a loader, add a line here and one in the contract test."""

from collections.abc import Callable

from fedlearn.data.breast_cancer import load_breast_cancer
from fedlearn.data.dataset import Column, DataOptions, Dataset, Loaded
from fedlearn.data.digits import load_digits
from fedlearn.data.fashion_mnist import load_fashion_mnist
from fedlearn.data.heart_disease import load_heart_disease
from fedlearn.data.tables import load_csv, load_parquet
from fedlearn.errors import ConfigError
from fedlearn.wording import did_you_mean

__all__ = ["DATASETS", "Column", "DataOptions", "Dataset", "Loaded", "load_dataset"]

DATASETS: dict[str, Callable[[DataOptions], Loaded]] = {
    "digits": load_digits,
    "breast-cancer": load_breast_cancer,
    "fashion-mnist": load_fashion_mnist,
    "heart-disease": load_heart_disease,
    "csv": load_csv,
    "parquet": load_parquet,
}


def load_dataset(options: DataOptions) -> Loaded:
    """Load what `options` name; the test part is public and None where the options hold nothing out.

    Guarantees: features are finite float32 (n, *input_shape), labels int64 in [0, len(classes)); the split is the same
    in every call; a record's features depend on that record and on public constants alone.

    Raises ConfigError for options that cannot work, and DataError (shown to the holder alone: it names row and column)
    for records that cannot.
    """
    loader = DATASETS.get(options.dataset)
    if loader is None:
        meant = did_you_mean(options.dataset, DATASETS)
        hint = f"; {meant}" if meant else ""
        raise ConfigError(f"data.dataset is {options.dataset!r}; expected one of {', '.join(DATASETS)}{hint}")
    return loader(options)
