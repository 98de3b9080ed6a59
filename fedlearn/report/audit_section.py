"""What audits found, as the report shows it: each attack's figure beside the claim, and the pictures it drew."""

import base64
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.report.figures import delta_text, epsilon_text, percent, plain
from fedlearn.report.run_folder import parsed, read_json, read_text

__all__ = ["AuditCard", "audit_cards", "empirical_audit"]

_FILE = "audit.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_PICTURE = 1 << 20

Share = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class AuditCard:
    """One audit: a question, its answer in figures, and whether what the run claims stood."""

    question: str
    passed: bool
    lines: tuple[str, ...]
    picture: str | None = None  # a data URI
    picture_text: str = ""


class _Audit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    config_hash: str
    passed: bool
    control_passed: bool
    false_alarm_rate: Share

    def verdict(self) -> str:
        """The last line of a card."""
        if not self.control_passed:
            return "The same attack without privacy did not succeed, so this audit shows nothing."
        found = "The claim stood" if self.passed else "The claim is REFUTED"
        return f"{found}; an honest run fails this with a probability of at most {plain(self.false_alarm_rate)}."


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    name: str
    passed: bool
    found: str


class _Mechanism(_Audit):
    kind: Literal["mechanism"]
    epsilon_lower: Epsilon
    epsilon_claimed: Epsilon
    epsilon_booked: Epsilon
    control_epsilon_lower: Epsilon
    delta: Share
    confidence: Share
    samples: int
    planned_cohort: int
    lost: int
    colluders: int
    engine_rounds: int
    engine_checks: tuple[_Check, ...]

    def card(self, folder: Path) -> AuditCard:
        del folder
        adversary = f"of {self.planned_cohort} clients {self.lost} drop out and {self.colluders} work with the server"
        return AuditCard(
            "Is what leaves as noisy as it is booked?",
            self.passed,
            (
                f"One release at a noise multiplier of 1, attacked with {plain(self.samples)} canaries; {adversary}.",
                f"Proven with {percent(self.confidence)} confidence: epsilon at least {_down(self.epsilon_lower)}. "
                f"Claimed: {epsilon_text(self.epsilon_claimed)} at delta {delta_text(self.delta)}, exact; the "
                f"accountant books {epsilon_text(self.epsilon_booked)}.",
                f"Without privacy the same attack proves at least {_down(self.control_epsilon_lower)}.",
                f"Stored records went through the whole engine for {plain(self.engine_rounds)} rounds: "
                f"{sum(check.passed for check in self.engine_checks)} of {len(self.engine_checks)} checks hold.",
                *(f"{check.name}: {check.found}." for check in self.engine_checks if not check.passed),
                self.verdict(),
            ),
        )


class _Inversion(_Audit):
    kind: Literal["inversion"]
    records: int
    cosine_control: float
    cosine_sent: float
    cosine_aggregate: float
    cosine_mean_image: float
    picture: Literal["inversion.png"]
    picture_rows: tuple[str, ...]

    def card(self, folder: Path) -> AuditCard:
        return AuditCard(
            "Can a record be rebuilt from what its client sends?",
            self.passed,
            (
                f"{plain(self.records)} records, each alone at its client in one round. Mean cosine between record and "
                f"rebuilt record, 1 for a copy: {self.cosine_sent:.2f} from what leaves the client, "
                f"{self.cosine_aggregate:.2f} from the released sum, {self.cosine_control:.2f} without privacy. "
                f"Whoever saw no client and shows the mean of public records reaches {self.cosine_mean_image:.2f}.",
                self.verdict(),
            ),
            picture=_data_uri(folder / self.picture),
            picture_text="From top to bottom: " + ", ".join(self.picture_rows) + ".",
        )


class _Rate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    false_positive_rate: Share
    true_positive_rate: Share
    ceiling: Share
    control_true_positive_rate: Share


class _Membership(_Audit):
    kind: Literal["membership"]
    rates: tuple[_Rate, ...]
    models: int
    canaries: int
    epsilon_claimed: Epsilon

    def card(self, folder: Path) -> AuditCard:
        del folder
        return AuditCard(
            "Can the model tell who was in its training data?",
            self.passed,
            (
                f"{plain(self.models)} shadow models, each trained with another half of {plain(self.canaries)} "
                f"mislabeled records, at epsilon {epsilon_text(self.epsilon_claimed)}.",
                *(
                    f"Where {percent(rate.false_positive_rate)} of the others are taken for members, "
                    f"{percent(rate.true_positive_rate)} of the members are found; the guarantee allows "
                    f"{percent(rate.ceiling)}. Without privacy: {percent(rate.control_true_positive_rate)}."
                    for rate in self.rates
                ),
                self.verdict(),
            ),
        )


_Any = Annotated[_Mechanism | _Inversion | _Membership, Field(discriminator="kind")]


class _Audits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["fedlearn/v1/audit"]
    audits: tuple[_Any, ...]


def audit_cards(folder: Path, config: RunConfig) -> tuple[AuditCard, ...]:
    """The audits in the `audit.json` of the folder of the run `config`; none where there is no such file.

    Raises:
        ConfigError: the file is damaged, or about another configuration.
    """
    place = folder / _FILE
    if not place.is_file():
        return ()
    audits: Any = parsed(place, read_json(place, read_text(folder, _FILE)), _Audits)
    digest = hashlib.sha256(config.to_bytes()).hexdigest()
    if any(audit.config_hash != digest for audit in audits.audits):
        raise ConfigError(f"{place}: is about another configuration than config.toml; move the file away")
    return tuple(audit.card(folder) for audit in audits.audits)


def empirical_audit(cards: tuple[AuditCard, ...]) -> str | None:
    """The audits as one line of the disclosures; None where there was none."""
    return " ".join(f"{card.question} {' '.join(card.lines)}" for card in cards) or None


def _data_uri(picture: Path) -> str | None:
    """The picture itself, so that the page stays one file; None where it is missing or no small PNG."""
    if not picture.is_file() or picture.stat().st_size > _LARGEST_PICTURE:
        return None
    content = picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if content.startswith(_PNG) else None


def _down(epsilon: float) -> str:
    """What was proven, rounded down."""
    return f"{math.floor(epsilon * 1000) / 1000:.3f}"
