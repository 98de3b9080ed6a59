"""The holder's own file, `client.toml`: the only thing its agent obeys.

There is no default: a file that lacks a limit is refused, and what it does not name is not accepted.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from fedlearn.config.run_config import REGISTRY_NAMES, Option, RunConfig
from fedlearn.config.schema import TABLES
from fedlearn.config.values import as_tuples
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.policy.roster import Confirmations, Roster, RosterEntry
from fedlearn.policy.run_policy import Policy
from fedlearn.privacy.guarantee import PrivacyUnit
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.toml import parse_toml, read_toml
from fedlearn.wording import did_you_mean, sentence_of

__all__ = ["HolderPolicy"]

_DATASET_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FILES = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet"}
_BUILT_IN = tuple(name for name in REGISTRY_NAMES["data.dataset"] if name not in _FILES.values())


def _hexadecimal(value: str, size: int) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
        raise ValueError(f"expected {size} bytes as {2 * size} hexadecimal digits, 0-9 and a-f")
    return value


def _file_kind(source: str) -> str | None:
    return next((kind for ending, kind in _FILES.items() if source.endswith(ending)), None)


def _known_name(name: str, known: tuple[str, ...], what: str) -> None:
    if name not in known:
        hint = did_you_mean(name, known)
        meant = f"; {hint}" if hint else ""
        raise ValueError(f'"{name}" is not a {what}: expected {", ".join(known)}{meant}')


Count = Annotated[int, Field(ge=0, lt=2**31)]
Least = Annotated[int, Field(ge=1, lt=2**31)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class HolderSection(_Section):
    """Who this is, and the roster it accepted."""

    client_id: str
    key_file: str
    roster_file: str
    roster_sha256: str

    @field_validator("client_id")
    @classmethod
    def _is_16_bytes(cls, value: str) -> str:
        return _hexadecimal(value, 16)

    @field_validator("roster_sha256")
    @classmethod
    def _is_32_bytes(cls, value: str) -> str:
        return _hexadecimal(value, 32)


class DatasetSection(_Section):
    """One data set with the budget of its lifetime, and what may be trained on it how."""

    source: str
    privacy_unit: Literal["record", "client"]
    max_epsilon: Annotated[float, Field(gt=0)]
    max_delta: Annotated[float, Field(gt=0, lt=1)]
    models: Names
    modes: Names
    # Both say what else is accepted: without them, no schema of a table, and no options of a model.
    schema_sha256: str | None = None
    model_options: dict[str, Annotated[tuple[dict[str, Option], ...], Field(strict=False)]] = Field(
        default_factory=dict
    )

    @field_validator("schema_sha256")
    @classmethod
    def _is_32_bytes(cls, value: str | None) -> str | None:
        return None if value is None else _hexadecimal(value, 32)

    @field_validator("model_options", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return as_tuples(value)

    @field_validator("source")
    @classmethod
    def _is_a_data_set_or_a_file(cls, value: str) -> str:
        if _file_kind(value) is None and value not in _BUILT_IN:
            raise ValueError(f"expected a .csv, .csv.gz or .parquet file, or one of {', '.join(_BUILT_IN)}")
        return value

    @field_validator("models")
    @classmethod
    def _are_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("expected the name of at least one model")
        for name in names:
            if ":" not in name:
                _known_name(name, REGISTRY_NAMES["model.name"], "model")
        return names

    @field_validator("modes")
    @classmethod
    def _are_modes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("expected the name of at least one mode")
        for name in names:
            _known_name(name, REGISTRY_NAMES["privacy.mode"], "mode")
        return names

    @property
    def kind(self) -> str:
        """What a run's `data.dataset` must be: the data set itself, or the form of the file."""
        return _file_kind(self.source) or self.source

    @property
    def schemas(self) -> tuple[str, ...] | None:
        """SHA-256 of the schemas that a table may be read by: the pinned one, or none; None for what ships."""
        if self.kind not in TABLES:
            return None
        return () if self.schema_sha256 is None else (self.schema_sha256,)


class LimitsSection(_Section):
    """What holds for every data set. Each is required."""

    min_survivors: Least
    max_colluders_at_least: Count
    unconfirmed_members: Count
    max_dimension: Least
    releases_per_model: Least


class AgentSection(_Section):
    """Where the agent listens, and the moment of its replies (0: as soon as they are made)."""

    socket: str
    reply_after_seconds: Annotated[float, Field(ge=0)]


class HolderPolicy(_Section):
    """One holder's policy.

    Paths in it are relative to its own folder. The keys whose owners the holder spoke to stand beside it, in
    `confirmed.toml`, written by `fedlearn client roster accept`.
    """

    holder: HolderSection
    dataset: dict[str, DatasetSection]
    limits: LimitsSection
    agent: AgentSection

    _path: Path = PrivateAttr()
    _roster: bytes | None = PrivateAttr(default=None)  # where it was given with the policy's bytes

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy in a file, its roster checked.

        Raises:
            ConfigError: no file, not one of a policy, or its roster cannot be read or lacks this holder.
            RefusedError: the roster is not the one that was accepted.
        """
        return cls.read(path)._checked()

    @classmethod
    def of_bytes(cls, content: bytes, *, roster: bytes, path: Path) -> Self:
        """The same of the bytes of a policy and of a roster, whatever stands in the file `path` by now.

        Raises:
            ConfigError, RefusedError: as `load`.
        """
        policy = cls._of_values(parse_toml(content, place=path), path)
        policy._roster = roster
        return policy._checked()

    def _checked(self) -> Self:
        self.own_entry(self.roster)
        _ = self.confirmations
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """The same without a look at the roster, which may not have been accepted yet.

        Raises:
            ConfigError: no file, or not one of a policy: an unknown key, a missing limit, a value that cannot be.
        """
        try:
            values = read_toml(path)
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: no such file; without a policy nothing is accepted: copy clients/client.example.toml there"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path}: the policy cannot be read: {error.strerror}") from None
        return cls._of_values(values, path)

    @classmethod
    def _of_values(cls, values: Mapping[str, Any], path: Path) -> Self:
        try:
            policy = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{path}: {sentence_of(error.errors()[0], cls, of='a policy')}") from None
        policy._path = path
        policy._check_datasets()
        return policy

    @property
    def path(self) -> Path:
        """The file itself."""
        return self._path

    @property
    def roster_path(self) -> Path:
        """Where the accepted roster lies."""
        return self._path.parent / self.holder.roster_file

    @property
    def confirmations_path(self) -> Path:
        """Where the compared keys are written down."""
        return self._path.parent / "confirmed.toml"

    @property
    def key_path(self) -> Path:
        """Where this holder's long-term key lies."""
        return self._path.parent / self.holder.key_file

    @property
    def socket_path(self) -> Path:
        """Where its agent listens."""
        return self._path.parent / self.agent.socket

    @property
    def ledger_path(self) -> Path:
        """Where its privacy ledger lies."""
        return self._path.parent / "ledger.db"

    def file_of(self, dataset_id: str) -> Path | None:
        """The file of a data set's records; None for one that ships."""
        section = self.dataset[dataset_id]
        return None if section.kind == section.source else self._path.parent / section.source

    @property
    def client_id(self) -> bytes:
        """This holder's 16 bytes."""
        return bytes.fromhex(self.holder.client_id)

    @property
    def roster(self) -> Roster:
        """The accepted roster.

        Raises:
            ConfigError: it cannot be read.
            RefusedError: its hash is not the accepted one.
        """
        try:
            content = self.roster_path.read_bytes() if self._roster is None else self._roster
        except OSError as error:
            raise ConfigError(
                f"{self.roster_path}: the roster cannot be read ({error.strerror}); accept one with "
                "fedlearn client roster accept"
            ) from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.holder.roster_sha256:
            raise RefusedError(
                f"{self.roster_path}: its SHA-256 is {digest}; {self._path} accepts {self.holder.roster_sha256}: "
                "accept another roster with fedlearn client roster accept"
            )
        return Roster.from_bytes(content)

    @property
    def confirmations(self) -> Confirmations:
        """Whose keys this holder compared; none where there is no file.

        Raises:
            ConfigError: the file is not one of confirmations.
        """
        try:
            content = self.confirmations_path.read_bytes()
        except FileNotFoundError:
            return Confirmations(())
        except OSError as error:
            raise ConfigError(f"{self.confirmations_path}: cannot be read: {error.strerror}") from None
        return Confirmations.from_bytes(content)

    def own_entry(self, roster: Roster) -> RosterEntry:
        """This holder in a roster.

        Raises:
            ConfigError: it is not there.
        """
        for entry in roster.members:
            if entry.client_id == self.client_id:
                return entry
        raise ConfigError(f"{self._path}: holder.client_id is {self.holder.client_id}; the roster has no such member")

    def for_dataset(self, dataset_id: str) -> Policy:
        """The limits of one data set of this file.

        Raises:
            ConfigError, RefusedError: as `load`, or there is no such data set.
        """
        if dataset_id not in self.dataset:
            self._no_dataset(f'"{dataset_id}"', ConfigError)
        section, limits = self.dataset[dataset_id], self.limits
        return Policy(
            privacy_unit=PrivacyUnit(section.privacy_unit),
            max_epsilon=section.max_epsilon,
            max_delta=section.max_delta,
            models=section.models,
            model_options=section.model_options,
            schemas=section.schemas,
            modes=section.modes,
            min_survivors=limits.min_survivors,
            max_colluders_at_least=limits.max_colluders_at_least,
            unconfirmed=len(self.confirmations.missing(self.roster, except_for=self.client_id)),
            unconfirmed_members=limits.unconfirmed_members,
            max_dimension=limits.max_dimension,
            releases_per_model=limits.releases_per_model,
            unmasked=False,
        )

    def dataset_of(self, config: RunConfig) -> str:
        """The id of the data set that a run is about: the only one of the run's `data.dataset`.

        Raises:
            RefusedError: there is none, or more than one.
        """
        fitting = [name for name, section in self.dataset.items() if section.kind == config.data.dataset]
        if len(fitting) != 1:
            which = "more than one" if fitting else "none"
            self._no_dataset(f'{which} for a run whose data.dataset is "{config.data.dataset}"', RefusedError)
        return fitting[0]

    def _no_dataset(self, asked: str, error: type[ConfigError | RefusedError]) -> NoReturn:
        raise error(f"{self._path}: data set {asked}; the policy has {', '.join(self.dataset)}")

    def _check_datasets(self) -> None:
        if not self.dataset:
            raise ConfigError(f"{self._path}: the policy has no data set; add a section [dataset.ID]")
        for name, section in self.dataset.items():
            if not _DATASET_ID.fullmatch(name):
                raise ConfigError(
                    f'{self._path}: dataset."{name}": expected an id of letters, digits, "_", "." and "-"'
                )
            for mode in section.modes:
                unit = MECHANISMS[mode].privacy_unit
                if unit not in (None, section.privacy_unit):
                    raise ConfigError(
                        f"{self._path}: dataset.{name}.modes names {mode}, which protects one {unit}; "
                        f"privacy_unit is {section.privacy_unit}, so it could never be accepted: leave it out"
                    )
