"""What a data set is once it is loaded: arrays, the task and, where the records have them, their natural clients."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.task.task import Targets, Task

__all__ = ["Column", "DataOptions", "Dataset", "Loaded", "hold_out", "refuse_unused"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Records ready for training, in one fixed order. None at all (n = 0) is valid: a client may have no records."""

    features: NDArray[np.float32]  # (n, *input_shape), finite
    labels: Targets  # (n, *target shape), as `task` has them
    task: Task = field(repr=False)
    clients: NDArray[np.int64] | None = None  # (n,), each in [0, len(client_names)): where a record was taken
    client_names: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's features, as the model sees it."""
        return self.features.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Dataset":
        """The records at `indices` (k,), in that order; task and client names stay those of the whole."""
        clients = None if self.clients is None else self.clients[indices]
        return Dataset(self.features[indices], self.labels[indices], self.task, clients, self.client_names)


@dataclass(frozen=True, slots=True)
class Column:
    """What everybody may know about one column of a table: a range `low`..`high`, or the list of its `values`.

    `missing` lists further spellings of "not known" (an empty field always is one); `impute` is the constant that takes
    the place of a missing value. Without `impute` a row with a missing value is no record.
    """

    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] | None = None
    impute: float | str | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """The keys of `[data]` that say which records to load; `dataset` is a name in `fedlearn.data.DATASETS`."""

    dataset: str
    path: str | None = None  # csv, parquet: the file; fashion-mnist: the folder
    public_test: float | str | None = None  # share of the records, or a second file; None: the data set's own rule
    label: str | None = None
    classes: tuple[tuple[str, ...], ...] | None = None  # the raw labels that make up each class
    columns: Mapping[str, Column] = field(default_factory=dict)
    client_column: str | None = None
    ignore: tuple[str, ...] = ()  # columns of a file that are not read: names, or patterns as "note_*"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Records to train on, and public held-out records to score with (None: there are none, nothing is evaluated).

    `unusable` says of stored rows that are no record why, by file and row; `clipped` counts for each column of a table
    the values beyond its bounds. Both are for whoever owns the records alone.
    """

    train: Dataset
    test: Dataset | None
    unusable: Mapping[str, str] = field(default_factory=dict)
    clipped: Mapping[str, int] = field(default_factory=dict)


def hold_out(records: Dataset, share: float) -> Loaded:
    """Hold out ceil(share * n) records as the public test, by the constant permutation RandomState(0) of all n.

    For data sets that ship, which are public and never change: with one record more, others would change sides. Of a
    user's own table each row takes its side by itself (`stored.held_out`).

    A constant, so that the test set is the same whatever `run.seed` is; share 0 holds out nothing. Raises ConfigError
    for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.public_test is {share!r}; expected a share of the records from 0 up to, not with, 1")
    if share == 0:
        return Loaded(records, None)
    order = np.random.RandomState(0).permutation(len(records))  # noqa: TID251 - a public, constant split
    train = len(records) - math.ceil(len(records) * Fraction(repr(float(share))))
    return Loaded(records.take(order[:train]), records.take(order[train:]))


def refuse_unused(options: DataOptions, *, used: frozenset[str] = frozenset()) -> None:
    """Raise ConfigError if a key is set that the data set has no use for: it would be ignored in silence."""
    for key in ("path", "label", "classes", "columns", "client_column", "ignore"):
        if key not in used and getattr(options, key):
            raise ConfigError(
                f"data.{key} is set, but the data set {options.dataset!r} has no use for it; "
                'leave it out, or set data.dataset to "csv" or "parquet" to bring your own records'
            )
    if isinstance(options.public_test, str) and "public_test" not in used:
        raise ConfigError(
            f"data.public_test is {options.public_test!r}; the data set {options.dataset!r} takes a share of its "
            "records (a number below 1) or, left out, its own fixed test set"
        )
