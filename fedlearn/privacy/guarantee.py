"""What a run guarantees. Six facts belong together; a bare epsilon is never passed around."""

import math
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum

__all__ = ["NEIGHBORING_RELATIONS", "Guarantee", "PrivacyUnit", "rounded_up"]

WEAK_ABOVE = 10.0


class PrivacyUnit(StrEnum):
    """Whose presence is hidden. The two are separate columns: never added, never compared."""

    RECORD = "record"
    CLIENT = "client"


# dp-accounting's names. The relation is fixed by the unit, never a setting: one record more or less; one client's data
# becomes empty (that the client took part is public).
NEIGHBORING_RELATIONS = {
    PrivacyUnit.RECORD: "ADD_OR_REMOVE_ONE",
    PrivacyUnit.CLIENT: "REPLACE_SPECIAL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """(epsilon, delta) for one unit, under one relation, against named adversaries.

    `epsilon_estimate` is the tighter figure of another accountant, for information only. `epsilon_if_masking_fails` is
    what one client's own share of the noise gives when its vector is seen alone; None where that is not an event the
    mode's guarantee depends on.
    """

    epsilon: float
    delta: float
    privacy_unit: PrivacyUnit
    neighboring_relation: str
    holds_against: tuple[str, ...]
    mechanism: str
    accountant: str
    assumptions: tuple[str, ...]
    epsilon_estimate: float | None
    epsilon_if_masking_fails: float | None

    @property
    def weak(self) -> bool:
        """Whether epsilon is above 10: then an attacker who guesses is hardly held back, and every page says so."""
        return self.epsilon > WEAK_ABOVE

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON has them: the three epsilons rounded up to 6 decimals, tuples as lists.

        None, in JSON null, stands for an epsilon that is not known, or that is no bound for it is infinite.
        """
        values = asdict(self)
        for key in ("epsilon", "epsilon_estimate", "epsilon_if_masking_fails"):
            known = values[key] is not None and math.isfinite(values[key])
            values[key] = rounded_up(values[key], 6) if known else None
        return values | {
            "privacy_unit": str(self.privacy_unit),
            "holds_against": list(self.holds_against),
            "assumptions": list(self.assumptions),
        }


def rounded_up(epsilon: float, decimals: int) -> float:
    """`epsilon` rounded up: 4 decimals where it is printed, 6 in JSON. A shown figure is never below the true one."""
    if not math.isfinite(epsilon):
        return epsilon
    return float(Decimal(repr(epsilon)).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_CEILING))
