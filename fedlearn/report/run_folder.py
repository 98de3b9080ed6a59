"""What the page is drawn from: the files of a finished run, read and checked before a word is written.

The page repeats a privacy guarantee, so a folder that is incomplete or contradicts itself is refused, never patched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlearn import bounded
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.report.certified import Certified
from fedlearn.wording import sentence_of

__all__ = [
    "Attempt",
    "ClassScores",
    "PlanFigures",
    "RoundScores",
    "RunFolder",
    "Summary",
    "parsed",
    "read_json",
    "read_text",
]

_MOST_TEXT = 1 << 26  # lines of 100,000 attempts


Score = float | None  # none of a model that gives none that is finite: no JSON of a run folder has another number
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    # Later versions may write more; what this page needs must be there and be of its type.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClassScores(_Record):
    name: str
    precision: Score
    recall: Score
    f1: Score
    support: Annotated[float, Field(ge=0)]


class PlanFigures(BaseModel):
    """The plan as stored; every field is shown, these are spoken of by name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    noise_multiplier: float | None = None
    planned_cohort: int | None = None
    min_survivors: int | None = None
    max_colluders: int | None = None
    threshold: int | None = None
    noise_to_signal: float | None = None

    def shown(self) -> dict[str, Any]:
        """All figures that are single values, in the order in which the run wrote them."""
        values = {**self.model_dump(exclude_none=True), **(self.model_extra or {})}
        return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


class Summary(_Record):
    """`summary.json`: what a run was and reached; what it guarantees stands in its certificate."""

    format: Literal["fedlearn/v1/summary"]
    scenario: str
    started: str
    ended: str
    seconds_per_round: float
    engine: str
    device: str
    mode: str
    private: bool
    masking: bool
    noise: str
    accuracy: Score
    loss: Score
    classes: tuple[str, ...]
    confusion: tuple[tuple[Count, ...], ...]
    per_class: tuple[ClassScores, ...]
    rounds: Count
    attempts: Count
    releases: Count
    plan: PlanFigures
    policy: dict[str, Any]
    warnings: tuple[str, ...]
    unprotected: tuple[str, ...]
    versions: dict[str, str]
    test_records: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _absent_scores_are_empty(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**values, **{key: values.get(key) or () for key in ("confusion", "per_class")}}

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.confusion and any(len(row) != len(self.classes) for row in (self.confusion, *self.confusion)):
            raise ValueError("expected a square confusion matrix with a row and a column for each class")
        return self


class RoundScores(_Record):
    """A line of `metrics.jsonl`: a round that succeeded."""

    round: Count
    attempt: Count
    asked: Count
    survivors: Count
    accuracy: Score = None
    loss: Score = None
    epsilon: Score = None
    seconds: float


class EventRecord(_Record):
    """What was released, as the accountant knows it (canonical event of docs/specification/privacy.md 7.1)."""

    count: Count
    eta: str
    mechanism: str
    noise_multiplier: str
    sampling_probability: str


class Attempt(_Record):
    """A line of `events.jsonl`: an attempt that asked clients for vectors."""

    round: Count
    attempt: Count
    asked: Count
    survivors: Count
    aborted: bool
    event: EventRecord | None = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run that the page shows."""

    config: RunConfig
    summary: Summary
    certified: Certified
    rounds: tuple[RoundScores, ...]
    attempts: tuple[Attempt, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `config.toml`, `summary.json`, `certificate.json`, `metrics.jsonl` and `events.jsonl`.

        Raises:
            ConfigError: a file is missing or cannot be what a run wrote; one sentence names the file and the reason.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such run folder; expected the folder that a run wrote")
        config, place = _config(folder), folder / "summary.json"
        summary = parsed(place, read_json(place, read_text(folder, "summary.json")), Summary)
        certified = Certified.read(folder)
        if summary.private != certified.private:
            raise ConfigError(
                f"{folder}: contradicts itself; expected guarantees in certificate.json where private is true in "
                "summary.json, and none where it is false"
            )
        return cls(
            config=config,
            summary=summary,
            certified=certified,
            rounds=tuple(_lines(folder, "metrics.jsonl", RoundScores)),
            attempts=tuple(_lines(folder, "events.jsonl", Attempt)),
        )


_Model = TypeVar("_Model", bound=BaseModel)


def _config(folder: Path) -> RunConfig:
    read_text(folder, "config.toml")
    return RunConfig.load(folder / "config.toml")


def read_text(folder: Path, name: str) -> str:
    """A file of a run folder.

    Raises:
        ConfigError: it is missing, cannot be read, or is no text.
    """
    try:
        return bounded.read_whole(folder / name, most=_MOST_TEXT).decode()
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: {name} is missing; expected the folder of a run that came to its end "
            "(an interrupted one goes on with `fedlearn simulate --resume`)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder / name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{folder / name}: expected UTF-8 text as a run writes it; the file is damaged") from None


def read_json(place: object, text: str) -> object:
    """What `text` says; `place` begins the sentence when something is wrong.

    Raises:
        ConfigError: it is not JSON.
    """
    try:
        return bounded.read_json(text.encode(), what="it")
    except ConfigError as error:
        raise ConfigError(
            f"{place}: expected JSON as a run writes it; the file is damaged or cut off ({error})"
        ) from None


def _lines(folder: Path, name: str, kind: type[_Model]) -> list[_Model]:
    texts = read_text(folder, name).splitlines()
    places = [f"{folder / name}, line {number}" for number in range(1, len(texts) + 1)]
    return [
        parsed(place, read_json(place, text), kind) for place, text in zip(places, texts, strict=True) if text.strip()
    ]


def parsed(place: object, value: object, kind: type[_Model]) -> _Model:
    """`value` as a `kind`.

    Raises:
        ConfigError: it is none, in one sentence that begins with `place`.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a JSON object as a run writes it; the file is damaged")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(f"{place}: contradicts itself; {first['ctx']['error']}") from None
        raise ConfigError(f"{place}: {sentence_of(first, kind)}") from None
