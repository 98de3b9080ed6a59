"""The five privacy modes. A mode is a unit, a kind of work and a source of noise: a line in `MECHANISMS`.

How a run of it is written down stands in `config/`; what the kinds of work and the sources say, in `works.py` and
`noise_sources.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedlearn.config.required import REQUIRED_KEYS
from fedlearn.privacy.assumptions import ONE_SITE
from fedlearn.privacy.guarantee import NEIGHBORING_RELATIONS, PrivacyUnit
from fedlearn.privacy.noise_sources import CLIENTS, NOBODY, SERVER, SHARES, NoiseSource
from fedlearn.privacy.works import PRIVATE_STEPS, RECORD_SUM, UPDATE, Work

__all__ = ["MECHANISMS", "Mechanism"]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What a client sends, how far one unit can move it, who adds the noise, and so against whom it holds.

    >>> MECHANISMS["record-distributed"].noise.in_shares
    True
    >>> MECHANISMS["none"].private
    False
    """

    name: str
    code: int  # privacy_mode of ctx, docs/protocol.md 2
    privacy_unit: PrivacyUnit | None
    work: Work
    noise: NoiseSource
    description: str  # of the noise, for a guarantee
    released: str  # what leaves, for a disclosure

    @property
    def required(self) -> frozenset[str]:
        """The configuration keys that this mode needs and another does not."""
        return frozenset(REQUIRED_KEYS[self.name])

    @property
    def private(self) -> bool:
        """Whether anything is guaranteed."""
        return self.privacy_unit is not None

    @property
    def neighboring_relation(self) -> str | None:
        """dp-accounting's name; fixed by the unit."""
        return NEIGHBORING_RELATIONS[self.privacy_unit] if self.privacy_unit else None

    @property
    def samples_records(self) -> bool:
        """Whether secret coins choose records inside a client."""
        return self.privacy_unit is PrivacyUnit.RECORD

    @property
    def sentence(self) -> str:
        """Who adds the noise, and who is protected."""
        return f"{self.noise.sentence}; {f'each {self.privacy_unit}' if self.privacy_unit else 'nobody'} is protected"

    def assumptions(self, *, masking: bool) -> tuple[str, ...]:
        """What the guarantee rests on besides arithmetic."""
        of_unit = (ONE_SITE.text,) if self.privacy_unit is PrivacyUnit.RECORD else ()
        return of_unit + self.noise.assumptions(masking=masking)


MECHANISMS: Mapping[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism(
            name="record-distributed",
            code=1,
            privacy_unit=PrivacyUnit.RECORD,
            work=RECORD_SUM,
            noise=SHARES,
            description="discrete Gaussian on one sum of clipped per-record gradients a round, in one share a client",
            released="each round's sum of clipped per-record gradients with noise, every model, the final model",
        ),
        Mechanism(
            name="record-local",
            code=2,
            privacy_unit=PrivacyUnit.RECORD,
            work=PRIVATE_STEPS,
            noise=CLIENTS,
            description="discrete Gaussian on every clipped gradient sum of every client (DP-SGD)",
            released="each client's noised update in each round, every model, the final model",
        ),
        Mechanism(
            name="client-distributed",
            code=3,
            privacy_unit=PrivacyUnit.CLIENT,
            work=UPDATE,
            noise=SHARES,
            description="discrete Gaussian on one sum of clipped client updates a round, in one share a client",
            released="each round's sum of clipped client updates with noise, every model, the final model",
        ),
        Mechanism(
            name="client-central",
            code=4,
            privacy_unit=PrivacyUnit.CLIENT,
            work=UPDATE,
            noise=SERVER,
            description="discrete Gaussian that the server adds to the sum of clipped client updates",
            released="each round's sum of clipped client updates with noise (without it to the server), every model",
        ),
        Mechanism(
            name="none",
            code=0,
            privacy_unit=None,
            work=UPDATE,
            noise=NOBODY,
            description="none",
            released="each round's sum of clipped client updates without noise, every model, the final model",
        ),
    )
}
