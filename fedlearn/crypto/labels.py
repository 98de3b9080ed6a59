"""Labels: one a purpose. What is hashed, derived or signed in docs/protocol.md starts with its own."""

import hashlib
from typing import Final

__all__ = ["DERIVATION_LABELS", "HASH_LABELS", "REFUSAL", "SIGNATURE_LABELS", "label"]

_PREFIX: Final = b"fedlearn/secagg/v1/"

HASH_LABELS: Final = ("b", "check", "ctx", "refuse", "u1", "u2")
DERIVATION_LABELS: Final = ("box", "pair", "self")
# What a roster key may sign: an advert, survivors, a reply, what was booked, joining a federation, a certificate.
SIGNATURE_LABELS: Final = ("adv", "u3", "reply", "attest", "join", "certificate")

_KNOWN: Final = frozenset(HASH_LABELS + DERIVATION_LABELS + SIGNATURE_LABELS)


def label(purpose: str) -> bytes:
    """L(purpose): u8 length of what follows | "fedlearn/secagg/v1/" | purpose. No label is the beginning of another."""
    if purpose not in _KNOWN:
        raise AssertionError(f"{purpose!r} is not a purpose of this protocol")
    name = _PREFIX + purpose.encode("ascii")
    return bytes([len(name)]) + name


# What a refused party gets, in every stage and for every reason: it must not tell the peer why.
REFUSAL: Final = hashlib.sha256(label("refuse")).digest()[:16]
