"""What the coordinator of a deployed run knows of its data: the schema in the configuration, and public test data."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import TABLES
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Dataset
from fedlearn.model.builders import model_features
from fedlearn.privacy.calibration import Plan
from fedlearn.round.agreement import plan_for
from fedlearn.round.source import Source, data_options, model_dimension, start_model
from fedlearn.task.classification import class_names

__all__ = ["PublicData"]


@dataclass(frozen=True)
class PublicData:
    """Implements `rounds.RunData`.

    `like` is one record of zeros as the model sees it; `test` is None where the coordinator has no public records.
    """

    config: RunConfig
    population_size: int
    like: Dataset = field(repr=False)
    test: Dataset | None = field(repr=False)

    @classmethod
    def load(cls, config: RunConfig, *, population_size: int) -> Self:
        """Derive the schema, and read the public test data: the file `data.public_test`, or what ships with a data set.

        Raises:
            ConfigError: the configuration does not fit its kind of data, or the file cannot be used.
        """
        kind, given = config.data.dataset, config.data.public_test
        is_table = kind in TABLES
        file = Path(given) if is_table and isinstance(given, str) else None
        source = Source(kind, file or Path(kind)) if is_table else Source(kind, None)
        if is_table:
            test = source.records(config) if file else None
        else:
            test = load_dataset(replace(data_options(config), path=None, client_column=None)).test
            if test is not None:
                test = model_features(config.model.name, options=config.model.options, dataset=test)
        return cls(config, population_size, source.blank(config), test if test is not None and len(test) else None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return class_names(self.like.task)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a record as the model sees it."""
        return self.like.input_shape

    @property
    def _search(self) -> list[Path]:
        return [self.config.source.parent] if self.config.source else []

    def build_model(self, config: RunConfig) -> nn.Module:
        """A model with the start weights of `run.seed`, checked where the mode is private.

        Raises:
            ConfigError: it cannot be built, or cannot be trained privately.
        """
        return start_model(config, self.like, search=self._search)

    @cached_property
    def plan(self) -> Plan:
        """The run's plan.

        Raises:
            ConfigError: it is refused.
        """
        dimension = model_dimension(self.config, self.like, search=self._search)
        return plan_for(self.config, dimension=dimension, population_size=self.population_size)
