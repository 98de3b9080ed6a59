"""Ed25519 signatures of long-term identities (RFC 8032). Every one starts with the label of its purpose."""

import functools
import hmac
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlearn.crypto.labels import SIGNATURE_LABELS, label

__all__ = ["SIGNATURE_BYTES", "SigningKey", "equal_in_constant_time", "verify"]

SIGNATURE_BYTES: Final = 64


class SigningKey:
    """A long-term identity.

    Guarantees:
        what it signs under one purpose is valid under no other;
        the secret has no repr.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        """Take the 32 bytes of RFC 8032's private key."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The 64 bytes of Ed25519(L(purpose) | message)."""
        if purpose not in SIGNATURE_LABELS:
            raise AssertionError(f"{purpose!r} is nothing that an identity signs")
        return self._key.sign(label(purpose) + message)


def verify(public: bytes, signature: bytes, *, purpose: str, message: bytes) -> bool:
    """Whether `signature` is that of the owner of `public` over L(purpose) | message."""
    if purpose not in SIGNATURE_LABELS:
        raise AssertionError(f"{purpose!r} is nothing that an identity signs")
    try:
        _public_key(public).verify(signature, label(purpose) + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def equal_in_constant_time(left: bytes, right: bytes) -> bool:
    """Whether two byte strings are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(left, right)


@functools.lru_cache(maxsize=1024)
def _public_key(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)
