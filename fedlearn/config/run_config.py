"""The configuration of a run: every key, its type and range, its canonical bytes. The only reader of run TOML.

What a wrong key or value is answered with stands in `wording.py`. No privacy parameter has a default here: the scenario
files state them, and `RunConfig` refuses a file that lacks one which its mode needs.
"""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json, floats_from_text, floats_to_text
from fedlearn.config.overrides import override_items, set_value
from fedlearn.config.required import REQUIRED_KEYS, SUMMED
from fedlearn.config.schema import check_public_test, columns_by_name
from fedlearn.config.values import (
    MOST_COLUMNS,
    MOST_KEYS,
    MOST_OPTIONS,
    Classes,
    Compile,
    Count,
    GradientBound,
    Name,
    Option,
    Positive,
    Probability,
    StageSeconds,
    Text,
    Texts,
    as_tuples,
)
from fedlearn.errors import ConfigError
from fedlearn.host.home import absolute_path, expanded
from fedlearn.host.shipped import scenario_names, scenario_path
from fedlearn.toml import read_toml
from fedlearn.wording import did_you_mean, sentence_of

__all__ = ["REGISTRY_NAMES", "ColumnConfig", "Compile", "Option", "RunConfig"]

# The names of the registries; a test compares them, for the registries live in rooms that load torch or flwr.
REGISTRY_NAMES: Mapping[str, tuple[str, ...]] = {
    "data.dataset": ("breast-cancer", "csv", "digits", "fashion-mnist", "heart-disease", "parquet"),
    "data.partition": ("dirichlet", "drawn", "iid", "natural", "shards"),
    "model.name": ("cnn", "linear", "mlp", "scatter-linear"),
    "training.strategy": ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi"),
    "privacy.mode": ("client-central", "client-distributed", "none", "record-distributed", "record-local"),
}

# A mode that is not in the list of such a key does not look at it.
_NOT_IN_ALL = frozenset(key for keys in REQUIRED_KEYS.values() for key in keys) - {*SUMMED}
# Where records lie; what only a simulation knows, and what stays at the coordinator: neither is in the canonical bytes.
_PATHS = ("path", "public_test")
_NOT_CANONICAL = ("features", "public_test", "public", "path", "client_column", "population_size", "partition", "alpha")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > MOST_KEYS:
            raise ValueError(f"expected a section of at most {MOST_KEYS} keys, not {len(values)}")
        if not isinstance(values, dict):
            return values
        return {key: as_tuples(item) if isinstance(item, list) else item for key, item in values.items()}


class RunSection(_Section):
    rounds: Count
    spare_rounds: Annotated[int, Field(ge=0, lt=2**31)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class ColumnConfig(_Section):
    """One column of a table: public bounds of a number, or the public list of values of a category."""

    low: float | None = None
    high: float | None = None
    values: Texts | None = None
    impute: float | Text | None = None
    missing: Texts = ()

    @field_validator("impute")
    @classmethod
    def _impute_is_of_the_columns_kind(cls, impute: float | str | None, info: ValidationInfo) -> float | str | None:
        """Canonical bytes write a float as text too: a column's kind alone says which it was."""
        category = info.data.get("values") is not None
        if impute is not None and isinstance(impute, str) is not category:
            raise ValueError("expected one of the values, in quotes" if category else "expected a number")
        return impute


class DataSection(_Section):
    dataset: Name
    public_test: float | str | None = None
    label: Text | None = None
    classes: Classes | None = None
    columns: dict[Text, ColumnConfig] = Field(default_factory=dict, max_length=MOST_COLUMNS)
    features: Annotated[Texts, Field(max_length=MOST_COLUMNS)] | None = None
    ignore: Texts | None = None
    public: bool | None = None
    path: str | None = None
    client_column: str | None = None
    population_size: Count | None = None
    partition: Name = "iid"
    alpha: Positive | None = None


class ModelSection(_Section):
    name: Name
    options: dict[Name, Option] = Field(default_factory=dict, max_length=MOST_OPTIONS)


class TrainingSection(_Section):
    local_steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: Positive
    strategy: Name
    strategy_options: dict[Name, float] = Field(default_factory=dict, max_length=MOST_OPTIONS)


class PrivacySection(_Section):
    mode: Name
    target_epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_grad_norm: GradientBound | None = None
    clipping_norm: Positive
    sampling_probability: Probability | None = None
    planned_records: Count | None = None
    max_participations: Count | None = None


class SecureAggregationSection(_Section):
    masking: bool
    cohorts: Literal["rotation", "poisson"]
    planned_cohort: Count
    min_survivors: Count
    max_colluders: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    scale_bits: Annotated[int, Field(ge=0, le=20)]
    stage_seconds: tuple[StageSeconds, StageSeconds, StageSeconds, StageSeconds, StageSeconds] = (30, 30, 600, 30, 30)


class RuntimeSection(_Section):
    """What cannot change the guarantee."""

    engine: Literal["in-process", "ray"] = "in-process"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: Count | Literal["auto"] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    compile: Compile = "auto"
    ray_address: str | None = None


class RunConfig(_Section):
    """A whole run, checked and frozen. Load one with `RunConfig.load`."""

    run: RunSection
    data: DataSection
    model: ModelSection
    training: TrainingSection
    privacy: PrivacySection
    secure_aggregation: SecureAggregationSection
    runtime: RuntimeSection = Field(default_factory=RuntimeSection)

    # Where the file lay: a user's own model is searched there. Not part of the run itself.
    _source: Path | None = PrivateAttr(default=None)
    # Keys that a user stated, in a file of their own or by an override; shipped scenarios state some for other modes.
    _stated: frozenset[str] = PrivateAttr(default=frozenset())

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()) -> Self:
        """Read a scenario by name or a TOML file by path, apply overrides, check everything.

        `overrides` are texts "section.key=value" as on the command line, or a mapping "section.key" -> value; a name
        with a dot in it stands in quotes. A path is relative to the folder of the file that states it, as that file was
        named: a link's own folder, not that of its target. In an override it is relative to the working folder.

        Raises:
            ConfigError: one sentence with the place, what was expected, what came, and the nearest valid name.
        """
        path = _find(source)
        values = _read(path)
        stated = set[str]() if path in map(scenario_path, scenario_names()) else _keys(values)
        if isinstance(data := values.get("data"), dict):
            data |= {key: absolute_path(data[key], path.parent) for key in _PATHS if key in data}
        for keys, value in override_items(overrides):
            is_path = keys[:-1] == ("data",) and keys[-1] in _PATHS
            set_value(values, keys, absolute_path(value, Path.cwd()) if is_path else value)
            stated.add(".".join(keys))
        config = cls.from_values(values, place=str(source))
        config._source, config._stated = path, frozenset(stated)
        return config

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, place: str) -> Self:
        """Check a nested mapping of sections; `place` begins the sentence when something is wrong.

        Raises:
            ConfigError: as `load`.
        """
        config = cls._checked(values, place)
        columns = columns_by_name(config.data.columns, config.data.features, place)
        if len(columns) > MOST_COLUMNS:
            raise ConfigError(f"{place}: data.columns has {len(columns)} columns; expected at most {MOST_COLUMNS}")
        return config.model_copy(update={"data": config.data.model_copy(update={"columns": columns})})

    @classmethod
    def _checked(cls, values: Mapping[str, Any], place: str) -> Self:
        """A configuration whose sections of columns are taken as they are named."""
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{place}: {sentence_of(error.errors()[0], cls)}") from None
        _check_names(config, place)
        _check_mode_has_its_keys(config, place)
        check_public_test(config.data, place, private="privacy.target_epsilon" in REQUIRED_KEYS[config.privacy.mode])
        _check_runtime(config.runtime, place, masking=config.secure_aggregation.masking)
        return config

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """The configuration in canonical bytes as `to_bytes` writes them.

        Raises:
            ConfigError: the bytes are not canonical, or not a valid configuration.
        """
        try:
            values = read_json(body, what="the configuration received")
            config = cls._checked(floats_from_text(values, cls), "configuration")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            raise ConfigError("the configuration received is not valid canonical JSON") from None
        if config.to_bytes() != body:
            raise ConfigError("the configuration received is not in canonical form")
        return config

    def to_bytes(self) -> bytes:
        """Canonical bytes: JSON, sorted keys, no spaces, ASCII, floats as `repr` in text, without simulate-only keys.

        Guarantees: equal configurations give equal bytes; `from_bytes` gives the configuration back.
        """
        values = self.model_dump(exclude_none=True, exclude={"runtime": True, "data": set(_NOT_CANONICAL)})
        return canonical_json(floats_to_text(values))

    def to_toml(self) -> str:
        """The run as a TOML file that `load` reads back."""
        return tomli_w.dumps(json.loads(json.dumps(self.model_dump(exclude_none=True), allow_nan=False)))

    @property
    def source(self) -> Path | None:
        """The file this was loaded from."""
        return self._source

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The keys that a user stated and that the mode does not look at, such as "training.local_steps", in order."""
        looked_at = {*REQUIRED_KEYS[self.privacy.mode]}
        if self.data.partition == "drawn":
            looked_at.add("privacy.planned_records")
        return tuple(sorted(self._stated & (_NOT_IN_ALL - looked_at)))

    def found_in(self, source: Path) -> Self:
        """The same run, as if loaded from `source`: a run folder's copy still finds a user's own model."""
        copy = self.model_copy()
        copy._source = source
        return copy

    @property
    def sampling_probability(self) -> Fraction:
        """`privacy.sampling_probability` as an exact fraction; 1 where the mode draws no record coins."""
        return Fraction(self.privacy.sampling_probability or "1")


def _find(source: str | Path) -> Path:
    path = expanded(source)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{source}: no such file; expected a run's TOML file or a scenario's name")
        return path.absolute()  # a link is not followed: what it leads to may lie in a store of its own
    names = scenario_names()
    if str(source) in names:
        return scenario_path(str(source))
    hint = did_you_mean(str(source), names)
    meant = f" ({hint})" if hint else ""
    raise ConfigError(f"{source}: no scenario of that name{meant}; expected a TOML file or one of {', '.join(names)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _keys(values: Mapping[str, Any]) -> set[str]:
    """The keys in the sections of a file."""
    return {f"{name}.{key}" for name, section in values.items() if isinstance(section, dict) for key in section}


def _check_names(config: RunConfig, place: str) -> None:
    """Names of registry entries; a user's own model is "package.module:builder"."""
    for key, known in REGISTRY_NAMES.items():
        section, field = key.split(".")
        name = getattr(getattr(config, section), field)
        if name in known or (key == "model.name" and ":" in name):
            continue
        hint = did_you_mean(name, known)
        meant = f"; {hint}" if hint else ""
        own = ' or your own "package.module:builder"' if key == "model.name" else ""
        raise ConfigError(f'{place}: {key} is "{name}"; expected one of {", ".join(known)}{own}{meant}')


def _check_mode_has_its_keys(config: RunConfig, place: str) -> None:
    mode = config.privacy.mode
    needed = list(REQUIRED_KEYS[mode])
    if config.secure_aggregation.masking:
        needed += SUMMED
    for key in needed:
        section, field = key.split(".")
        if getattr(getattr(config, section), field) is None:
            raise ConfigError(f'{place}: {key} is missing; mode "{mode}" needs it, so state it in [{section}]')
    if config.data.partition == "dirichlet" and config.data.alpha is None:
        raise ConfigError(
            f'{place}: data.alpha is missing; partition "dirichlet" needs it: a number > 0, small is uneven'
        )
    if config.data.partition == "drawn":
        _check_drawn(config, place)


def _check_drawn(config: RunConfig, place: str) -> None:
    """Clients that share records are no ground for a guarantee that is about records."""
    if config.privacy.planned_records is None:
        raise ConfigError(
            f'{place}: privacy.planned_records is missing; partition "drawn" needs it: the records of all clients '
            "together, of which each draws its part"
        )
    if "privacy.max_grad_norm" in REQUIRED_KEYS[config.privacy.mode]:  # it is about records
        raise ConfigError(
            f'{place}: data.partition is "drawn" in mode "{config.privacy.mode}"; a guarantee for records counts on '
            "each being at one client only, and these clients share records: expected another partition, or a mode "
            "whose unit is the client"
        )


def _check_runtime(runtime: RuntimeSection, place: str, *, masking: bool) -> None:
    """Refuse what would silently have no effect."""
    if runtime.workers != 1 and (runtime.engine != "in-process" or runtime.ray_address is not None):
        raise ConfigError(
            f"{place}: runtime.workers is {runtime.workers}; processes share the in-process engine's work on one "
            "machine: expected 1"
        )
    if runtime.ray_address is not None and masking and runtime.engine != "ray":
        raise ConfigError(
            f"{place}: runtime.ray_address is set, and clients mask; a cluster shares the in-process engine's work "
            'without masking, or carries engine "ray": leave it out'
        )
