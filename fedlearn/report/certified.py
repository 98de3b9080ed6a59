"""The certificate of a run folder, as statement, checklist, registry entry and page take it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedlearn.bounded import MOST_MODEL_BYTES, read_bytes, read_json, read_whole
from fedlearn.canonical import canonical_json
from fedlearn.certificate.form import MalformedError, is_signed, number_of, parse
from fedlearn.certificate.verify import verify_certificate
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.policy.roster import Roster
from fedlearn.privacy.guarantee import NEIGHBORING_RELATIONS, Guarantee, PrivacyUnit

__all__ = ["Certified"]

_FILE = "certificate.json"
_MODEL = "model.safetensors"
_ROSTER = "roster.toml"


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate whose form and signature hold. `content` is as `certificate.form` has it."""

    content: Mapping[str, Any] = field(repr=False)
    guarantees: tuple[Guarantee, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The certificate of the run in `folder`.

        Raises:
            ConfigError: it is missing, or is not what was signed.
        """
        place = folder / _FILE
        try:
            content = parse(read_whole(place))
        except OSError as error:
            raise ConfigError(
                f"{folder}: {_FILE} is missing; expected the folder of a run that came to its end ({error.strerror})"
            ) from None
        except (MalformedError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from None
        if not is_signed(content):
            raise ConfigError(f"{place}: its signature does not hold; it is not what the coordinator signed")
        return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The view of a certificate's content.

        Raises:
            ConfigError: a guarantee promises nothing, or is not about its unit's own relation.
        """
        guarantees = tuple(_guarantee(entry) for entry in content["guarantees"])
        for guarantee in guarantees:
            own = guarantee.neighboring_relation == NEIGHBORING_RELATIONS[guarantee.privacy_unit]
            if not (own and guarantee.holds_against and guarantee.epsilon < float("inf")):
                raise ConfigError(
                    f"{_FILE}: expected guarantees of a finite epsilon, the unit's own relation and observers"
                )
        return cls(content, guarantees)

    def refuse_unverified(self, folder: Path, config: RunConfig) -> None:
        """See that all checks of `fedlearn verify` hold for the run `config`, with model and roster as in `folder`.

        Raises:
            ConfigError: one does not, and which; or the model or the roster of a masked run is missing.
        """
        model = read_bytes(folder / _MODEL, most=MOST_MODEL_BYTES)
        roster = Roster.from_bytes(read_bytes(folder / _ROSTER)) if self.masking else None
        checks = verify_certificate(canonical_json(self.content), model, roster).checks
        failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
        if hashlib.sha256(config.to_bytes()).hexdigest() != self.content["config_hash"]:
            failed.append("config: it is about another configuration than config.toml")
        if failed:
            raise ConfigError(
                f"{folder / _FILE}: what it says does not hold, and is not repeated in a report ({'; '.join(failed)})"
            )

    @property
    def private(self) -> bool:
        """Whether anything is guaranteed."""
        return bool(self.guarantees)

    @property
    def masking(self) -> bool:
        """Whether the sums have transcripts of secure aggregation."""
        return self.content["secure_aggregation"] is not None

    @property
    def noise(self) -> str:
        """Who drew the noise, or what stood for it in a simulation."""
        return str(self.content["noise"]["drawn"])

    @property
    def simulated(self) -> bool:
        """Whether one person held all records."""
        return bool(self.content["kind"] == "simulation")

    @property
    def config(self) -> Mapping[str, Any]:
        """The sections of the configuration, floats as text."""
        sections: Mapping[str, Any] = read_json(self.content["config"].encode(), what="the configuration")
        return sections

    @property
    def mode(self) -> str:
        """The privacy mode."""
        return str(self.config["privacy"]["mode"])

    @property
    def releases(self) -> int:
        """The most releases of one client that the guarantees count."""
        return max((entry["releases"] for entry in self.content["guarantees"]), default=0)


def _guarantee(entry: Mapping[str, Any]) -> Guarantee:
    estimate, alone = entry["epsilon_estimate"], entry["epsilon_if_masking_fails"]
    return Guarantee(
        epsilon=number_of(entry["epsilon"]),
        delta=number_of(entry["delta"]),
        privacy_unit=PrivacyUnit(entry["privacy_unit"]),
        neighboring_relation=entry["neighboring_relation"],
        holds_against=tuple(entry["holds_against"]),
        mechanism=entry["mechanism"],
        accountant=entry["accountant"],
        assumptions=tuple(assumption["text"] for assumption in entry["assumptions"]),
        epsilon_estimate=None if estimate is None else number_of(estimate),
        epsilon_if_masking_fails=None if alone is None else number_of(alone),
    )
