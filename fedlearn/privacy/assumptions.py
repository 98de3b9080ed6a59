"""What a guarantee rests on besides arithmetic: each assumption once, with who checks it."""

from dataclasses import dataclass
from typing import Final

__all__ = [
    "ASSUMPTIONS",
    "COMPUTATIONAL",
    "HONEST_SHARES",
    "ONE_SITE",
    "SECRET_COHORTS",
    "SYSTEM_ENTROPY",
    "TRUSTED_SERVER",
    "UNMASKED",
    "Assumption",
    "assumption_of",
]


@dataclass(frozen=True, slots=True)
class Assumption:
    """`id` is stable over versions; `checked_by` says who sees to it, and by what."""

    id: str
    text: str
    checked_by: str


ONE_SITE: Final = Assumption(
    "one-site", "one person's records are at one client only", "the data holders; no software can see it"
)
COMPUTATIONAL: Final = Assumption(
    "computational",
    "against the server: masks, signatures and the AES stream are unbroken",
    "public cryptanalysis of X25519, Ed25519, SHA-256 and AES-256",
)
SYSTEM_ENTROPY: Final = Assumption(
    "system-entropy",
    "the operating system's randomness is unpredictable",
    "each party for its own machine",
)
HONEST_SHARES: Final = Assumption(
    "honest-shares",
    "all participants but the counted colluders add their share of the noise",
    "each data holder for itself, and by comparing the keys of the roster with people it knows",
)
UNMASKED: Final = Assumption(
    "unmasked",
    "masking is off: the server sees each client's vector with one share of the noise",
    "nobody; the server must be trusted with what it sees",
)
TRUSTED_SERVER: Final = Assumption(
    "trusted-server",
    "the server, which sees the exact sum, adds the noise that it promised and shows nothing else",
    "nobody but the server; its own ledger says what it promised",
)
SECRET_COHORTS: Final = Assumption(
    "secret-cohorts", "who was chosen, and how many, stays with the server", "nobody but the server"
)

ASSUMPTIONS: Final = (
    ONE_SITE,
    COMPUTATIONAL,
    SYSTEM_ENTROPY,
    HONEST_SHARES,
    UNMASKED,
    TRUSTED_SERVER,
    SECRET_COHORTS,
)
_BY_TEXT: Final = {assumption.text: assumption for assumption in ASSUMPTIONS}


def assumption_of(text: str) -> Assumption:
    """The assumption that a guarantee states in these words; KeyError for any other."""
    return _BY_TEXT[text]
