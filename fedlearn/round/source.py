"""Where one data set's records are, and how a configuration wants to see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from torch import nn

from fedlearn.config.run_config import RunConfig
from fedlearn.data import load_dataset
from fedlearn.data.dataset import Column, DataOptions, Dataset
from fedlearn.data.readers import read_table
from fedlearn.data.stored import fingerprint_of, fingerprint_of_name
from fedlearn.data.tables import empty_records
from fedlearn.errors import ConfigError
from fedlearn.model.builders import build_model, model_features
from fedlearn.model.vector import layout_of
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.training.bounded import BoundedTensors, check_entries
from fedlearn.training.model_check import check_model

__all__ = ["Source", "Unusable", "data_options", "model_dimension", "start_model"]

_ROWS_NAMED: Final = 20


def data_options(config: RunConfig) -> DataOptions:
    """The keys of `[data]` as the data room takes them."""
    data = config.data
    return DataOptions(
        dataset=data.dataset,
        path=data.path,
        public_test=data.public_test,
        label=data.label,
        classes=data.classes,
        columns={name: Column(**dict(column)) for name, column in data.columns.items()},
        client_column=data.client_column,
        ignore=data.ignore or (),
    )


@dataclass(frozen=True, slots=True)
class Unusable:
    """For the holder alone: of `rows` stored rows, by file and row why some are none; what was clipped, by column."""

    rows: int
    reasons: Mapping[str, str] = field(repr=False)
    clipped: Mapping[str, int] = field(repr=False)

    @property
    def sentence(self) -> str:
        """How many and which, and nothing of what they hold; "" where every row is a record."""
        if not self.reasons:
            return ""
        numbers = [place.rpartition(" ")[2] for place in self.reasons]
        more = ", ..." if numbers[_ROWS_NAMED:] else ""
        return (
            f"{len(numbers)} of {self.rows} rows cannot be used and count as absent: {', '.join(numbers[:_ROWS_NAMED])}"
            f"{more}"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """One `[dataset.ID]` of a holder: its `kind` is what a run's `data.dataset` says, `path` the file if there is one.

    Guarantees:
        a configuration says how the records are read, never from where: no path of it is opened.
    """

    kind: str
    path: Path | None

    @classmethod
    def of(cls, policy: HolderPolicy, dataset_id: str) -> Self:
        """The source that a policy names."""
        return cls(policy.dataset[dataset_id].kind, policy.file_of(dataset_id))

    def blank(self, config: RunConfig) -> Dataset:
        """One record of zeros as the model would see it; a holder's file is not opened.

        Raises:
            ConfigError: the configuration does not fit this kind of data.
        """
        options = self.options(config)
        seen = empty_records(options) if self.path else load_dataset(options).train
        zeros = Dataset(np.zeros((1, *seen.input_shape), np.float32), seen.task.blank_targets(1), seen.task)
        return self._features(zeros, config)

    def records(self, config: RunConfig) -> Dataset:
        """All records as the model sees them: every row that the schema fits, without a word about the others.

        Guarantees:
            a row more in the file, usable or not, anywhere, changes no other row's record.

        Raises:
            ConfigError: the file as a whole cannot be read, or not by this configuration.
        """
        return self.loaded(config)[0]

    def loaded(self, config: RunConfig) -> tuple[Dataset, Unusable]:
        """The same with what the holder alone is told: which rows give no record.

        Raises:
            ConfigError: as `records`.
        """
        loaded = load_dataset(self.options(config))
        rows = len(loaded.train) + len(loaded.unusable)
        return self._features(loaded.train, config), Unusable(rows, loaded.unusable, loaded.clipped)

    def fingerprint(self, salt: bytes) -> bytes:
        """The records as they are stored, whatever schema reads them; of a data set that ships, its name.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.path is None:
            return fingerprint_of_name(self.kind, salt)
        return fingerprint_of(read_table(self.kind, self.path), salt)

    def options(self, config: RunConfig) -> DataOptions:
        """How a configuration reads these records: its schema, this source."""
        path = str(self.path) if self.path else None
        return replace(data_options(config), dataset=self.kind, path=path, public_test=None, client_column=None)

    def _features(self, records: Dataset, config: RunConfig) -> Dataset:
        return model_features(config.model.name, options=config.model.options, dataset=records)


def model_dimension(config: RunConfig, like: Dataset, *, search: Sequence[Path]) -> int:
    """Entries of the model for records `like` these, counted without memory for them where its builder allows that.

    A builder that reads a value of a tensor (`.item()`) needs memory; then it may make so many entries and no more.

    Raises:
        ConfigError: it cannot be built, or is too large with all that is frozen in it.
    """
    try:
        with torch.device("meta"):
            model = _build(config, like, search)
    except ConfigError:
        with BoundedTensors():
            model = _build(config, like, search)
    check_entries(sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())))
    return layout_of(model).dimension


def start_model(config: RunConfig, like: Dataset, *, search: Sequence[Path]) -> nn.Module:
    """A model for records `like` these with the start weights of `run.seed`, checked for its mode.

    Raises:
        ConfigError: it cannot be built, or cannot be trained in this mode.
    """
    model = _build(config, like, search)
    unit = MECHANISMS[config.privacy.mode].privacy_unit
    check_model(model, input_shape=like.input_shape, task=like.task, unit=unit)
    return model


def _build(config: RunConfig, like: Dataset, search: Sequence[Path]) -> nn.Module:
    return build_model(
        config.model.name,
        input_shape=like.input_shape,
        classes=like.task.outputs,
        options=config.model.options,
        seed=config.run.seed,
        search=search,
    )
