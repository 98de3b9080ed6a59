"""A finished model in one file that stands alone: weights, and beside them how they are used.

The file is safetensors. Its metadata has one entry, canonical JSON: the public sections of the configuration that say
what a record is and which model it is, the shape of a record and the names of the classes. Nothing of it comes from a
record, and coordinator and holders derive the same bytes, so their files are equal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import save
from torch import nn

from fedlearn.bounded import MOST_HEADER, MOST_MODEL_BYTES, read_bytes, read_json, read_safetensors
from fedlearn.canonical import canonical_json, floats_from_text
from fedlearn.config.run_config import DataSection, ModelSection, RunConfig
from fedlearn.data.dataset import Column, Dataset
from fedlearn.data.preprocessing import Frame, preprocess_frame
from fedlearn.data.readers import read_table
from fedlearn.errors import ConfigError
from fedlearn.model.builders import build_model, model_features
from fedlearn.model.layout import Layout
from fedlearn.model.vector import layout_of, write_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.task.classification import Classification

__all__ = ["MODEL_FILE", "Rows", "TrainedModel", "load_model", "model_file"]

MODEL_FILE: Final = "model.safetensors"

_ENTRY: Final = "fedlearn"
_FORMAT: Final = "fedlearn/v1/model"
_AT_ONCE: Final = 1024  # records of one forward pass

# A table: columns by name (a data frame, a mapping), rows as mappings, or a file. Else an array (n, *input_shape).
Rows = Frame | Sequence[Mapping[str, object]] | ArrayLike | str | Path


def model_file(
    weights: Vector, layout: Layout, config: RunConfig, *, input_shape: Sequence[int], classes: Sequence[str]
) -> bytes:
    """The safetensors file of a finished model: `weights` (d,) as float32 tensors, and its description.

    `input_shape` is that of a record as the model sees it.

    Guarantees:
        equal weights and equal canonical configurations give equal bytes;
        what is written can be read.

    Raises:
        ConfigError: the description is too long to be read.
    """
    public = json.loads(config.to_bytes())
    about = {
        "format": _FORMAT,
        "data": public["data"],
        "model": public["model"],
        "seed": config.run.seed,  # what is frozen in a model is what its builder drew
        "input_shape": list(input_shape),
        "classes": list(classes),
    }
    tensors = {name: part.astype("float32") for name, part in layout.split(weights).items()}
    content = save(tensors, {_ENTRY: canonical_json(about).decode("ascii")})
    if (header := int.from_bytes(content[:8], "little")) > MOST_HEADER:
        raise ConfigError(
            f"the model's description has {header} bytes, and whoever loads it reads at most {MOST_HEADER}; state "
            "fewer columns, or shorter names and lists of values"
        )
    return content


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model and what it takes to use it. `module` is the `nn.Module`, in `eval` mode."""

    module: nn.Module
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    name: str
    options: Mapping[str, object]
    columns: Mapping[str, Column]

    def predict(self, rows: Rows) -> list[str]:
        """The name of the likeliest class of each of `rows`.

        Raises:
            ConfigError: as `predict_proba`.
        """
        return [self.classes[index] for index in self.predict_proba(rows).argmax(axis=1)]

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        """Probabilities (n, classes) of `rows`: a table, where the model was trained on one, else an array.

        Raises:
            ConfigError: they are not as the model takes them; of a table, row and column are named.
        """
        features = torch.from_numpy(self._features(rows))
        dtype = next(self.module.parameters()).dtype
        with torch.inference_mode():
            logits = [self.module(chunk.to(dtype)).to(torch.float64) for chunk in torch.split(features, _AT_ONCE)]
            return cast("NDArray[np.float64]", torch.cat(logits).reshape(-1, len(self.classes)).softmax(1).numpy())

    def preprocess(self, rows: Rows) -> NDArray[np.float32]:
        """A table as features (n, width) float32, by the public bounds of `[data.columns]`, as the clients did it.

        Columns that the model does not use are not read; the label need not be there.

        Raises:
            ConfigError: a column or a value is not as the bounds say, or the model takes no table.
        """
        if not self.columns:
            raise ConfigError(f"this model takes arrays (n, {self._shape}), not tables: it was not trained on columns")
        if isinstance(rows, str | Path):
            kind = "parquet" if Path(rows).suffix == ".parquet" else "csv"
            return preprocess_frame(read_table(kind, Path(rows)).columns, self.columns, place=str(rows))
        if isinstance(rows, Sequence):
            if not all(isinstance(row, Mapping) for row in rows):
                raise ConfigError("expected a table: columns by name, rows as mappings from name to value, or a file")
            named = cast("Sequence[Mapping[str, object]]", rows)
            return preprocess_frame({name: [row.get(name) for row in named] for name in self.columns}, self.columns)
        if not hasattr(rows, "__getitem__") or isinstance(rows, np.ndarray):
            raise ConfigError("expected a table: columns by name, rows as mappings from name to value, or a file")
        return preprocess_frame(cast(Frame, rows), self.columns)

    def _features(self, rows: Rows) -> NDArray[np.float32]:
        if self.columns:
            return self.preprocess(rows)
        try:
            features = np.array(rows, dtype=np.float32)
        except (TypeError, ValueError):
            raise ConfigError(f"expected an array of numbers (n, {self._shape})") from None
        if self.name == "scatter-linear" and features.ndim == 4 and features.shape[1:] != self.input_shape:
            labels = np.zeros(len(features), np.int64)
            pictures = Dataset(features, labels, Classification(self.classes))
            features = model_features(self.name, options=self.options, dataset=pictures).features
        if features.shape[1:] != self.input_shape or features.ndim == 0:
            raise ConfigError(f"expected an array (n, {self._shape}), as in training; came {features.shape}")
        return np.ascontiguousarray(features)

    @property
    def _shape(self) -> str:
        return ", ".join(map(str, self.input_shape))


def load_model(path: Path | str) -> TrainedModel:
    """The trained model in a run folder, or in a file such as `fedlearn client model` names; no record is needed.

    A model of your own ("package.module:builder") is made by its builder, whose module has to be importable: from the
    folder of the file, from that of the run's TOML file, from the working folder or from the environment.

    Raises:
        ConfigError: there is no finished run, the file is not one that fedlearn wrote, or the model cannot be built.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        expected = "the folder of a finished run" if file.name == MODEL_FILE else "a model's file or a run's folder"
        raise ConfigError(f"{path}: no {file.name}; expected {expected}")
    tensors, about = read_safetensors(read_bytes(file, most=MOST_MODEL_BYTES), what=str(file))
    return _Description.read(file, about.get(_ENTRY)).model(file, tensors)


@dataclass(frozen=True, slots=True)
class _Description:
    data: DataSection
    model_section: ModelSection
    seed: int
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, text: str | None) -> Self:
        """Raises ConfigError for a file without one, or with one that is not as `model_file` writes it."""
        try:
            values: dict[str, Any] = read_json((text or "").encode(), what=str(file))
            sections = floats_from_text({"data": values["data"], "model": values["model"]}, RunConfig)
            shape, classes = values["input_shape"], values["classes"]
            if values["format"] != _FORMAT or canonical_json(values).decode("ascii") != text:
                raise ValueError
            if not all(type(size) is int and size > 0 for size in shape) or not all(type(n) is str for n in classes):
                raise TypeError
            data, model = DataSection.model_validate(sections["data"]), ModelSection.model_validate(sections["model"])
            return cls(data, model, int(values["seed"]), tuple(shape), tuple(classes))
        except (ConfigError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            raise ConfigError(f"{file}: says not which model it is; expected one as fedlearn writes it") from None

    def model(self, file: Path, tensors: Mapping[str, NDArray[Any]]) -> TrainedModel:
        module = build_model(
            self.model_section.name,
            input_shape=self.input_shape,
            classes=len(self.classes),
            options=self.model_section.options,
            seed=self.seed,
            search=_search(file),
        )
        layout = layout_of(module)
        if {name: values.shape for name, values in tensors.items()} != dict(
            zip(layout.names, layout.shapes, strict=True)
        ):
            raise ConfigError(f"{file}: its tensors are not those of its model {self.model_section.name}")
        write_parameters(module, layout.join(tensors))
        return TrainedModel(
            module=module.eval(),
            classes=self.classes,
            input_shape=self.input_shape,
            name=self.model_section.name,
            options=self.model_section.options,
            columns={name: Column(**dict(column)) for name, column in self.data.columns.items()},
        )


def _search(file: Path) -> list[Path]:
    """Where a user's own model may lie: as in training."""
    origin = file.parent / "origin.txt"
    trained_from = [Path(origin.read_text(encoding="utf-8")).parent] if origin.is_file() else []
    return [*trained_from, file.parent, Path.cwd()]
