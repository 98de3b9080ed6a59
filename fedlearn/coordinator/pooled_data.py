"""What the coordinator of a simulation knows of the data: all of it, and who holds which record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Dataset
from fedlearn.data.partition import Partition, make_partition
from fedlearn.errors import ConfigError
from fedlearn.model.builders import model_features
from fedlearn.model.vector import layout_of
from fedlearn.privacy.calibration import Plan
from fedlearn.round.agreement import plan_for
from fedlearn.round.source import data_options, start_model
from fedlearn.task.classification import class_names

__all__ = ["SimulatedData", "load_simulated_data", "partition_of"]


@dataclass(frozen=True)
class SimulatedData:
    """The pooled records of a simulation as the model sees them, and who holds which."""

    config: RunConfig
    train: Dataset = field(repr=False)
    test: Dataset | None = field(repr=False)
    population_size: int
    partition: Partition = field(repr=False)
    unusable: Mapping[str, str] = field(default_factory=dict, repr=False)  # by file and row: why it gives no record

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return class_names(self.train.task)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a record as the model sees it."""
        return self.train.input_shape

    def build_model(self, config: RunConfig) -> nn.Module:
        """A fresh model with the start weights of `run.seed`, checked for its mode.

        Raises:
            ConfigError: the model cannot be built, or cannot be trained in this mode.
        """
        source = self.config.source
        search = ([source.parent] if source else []) + [Path.cwd()]
        return start_model(config, self.train, search=search)

    @cached_property
    def plan(self) -> Plan:
        """The run's plan, derived from the model's dimension and the population.

        Raises:
            ConfigError: the plan is refused.
        """
        dimension = layout_of(self.build_model(self.config)).dimension
        return plan_for(self.config, dimension=dimension, population_size=self.population_size)


def load_simulated_data(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> SimulatedData:
    """Load the data set, turn records into what the model takes, divide them among the clients.

    Raises:
        ConfigError: the data cannot be used, in one sentence.
    """
    loaded = load_dataset(data_options(config))
    natural = config.data.partition == "natural"
    population = config.data.population_size or (len(loaded.train.client_names) if natural else None)
    if population is None:
        raise ConfigError("data.population_size is missing; state how many clients the records are divided among")

    def seen_by_model(records: Dataset) -> Dataset:
        return model_features(config.model.name, options=config.model.options, dataset=records, progress=progress)

    if not len(loaded.train):
        raise ConfigError("data has no record to train on; name a file or a share that leaves some")
    train = seen_by_model(loaded.train)
    return SimulatedData(
        config=config,
        train=train,
        test=seen_by_model(loaded.test) if loaded.test is not None and len(loaded.test) else None,
        population_size=population,
        partition=partition_of(config, train, population),
        unusable=loaded.unusable,
    )


def partition_of(config: RunConfig, train: Dataset, population_size: int) -> Partition:
    """Who holds which records of `train`.

    Raises:
        ConfigError: they cannot be divided so.
    """
    return make_partition(
        config.data.partition,
        labels=train.labels,
        clients=train.clients,
        client_names=train.client_names,
        population_size=population_size,
        alpha=config.data.alpha,
        client_records=(config.privacy.planned_records or 0) // population_size,
        seed=config.run.seed,
    )
