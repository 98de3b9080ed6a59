"""A few of a scenario's records, as its model takes them: an attack needs a handful, and features can cost minutes."""

import numpy as np

from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Dataset
from fedlearn.model.builders import model_features
from fedlearn.round.source import data_options

__all__ = ["count_records", "some_records"]


def count_records(config: RunConfig) -> int:
    """How many records the training data has.

    Raises:
        ConfigError: the data cannot be used.
    """
    return len(load_dataset(data_options(config)).train)


def some_records(config: RunConfig, count: int) -> SimulatedData:
    """At most `count` records of the training data and as many of the public test data, evenly spaced.

    They are divided among nobody.

    Raises:
        ConfigError: the data cannot be used.
    """
    loaded = load_dataset(data_options(config))

    def taken(records: Dataset) -> Dataset:
        few = records.take(np.linspace(0, len(records) - 1, min(count, len(records))).astype(np.int64))
        return model_features(config.model.name, options=config.model.options, dataset=few)

    return SimulatedData(
        config=config,
        train=taken(loaded.train),
        test=taken(loaded.test) if loaded.test is not None and len(loaded.test) else None,
        population_size=config.data.population_size or max(1, len(loaded.train.client_names)),
        partition=lambda _: np.zeros(0, dtype=np.int64),
    )
