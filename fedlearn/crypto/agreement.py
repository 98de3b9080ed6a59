"""X25519 agreement, derivation by HKDF-SHA256, and boxes of one message a key (RFC 7748, RFC 5869, AES-256-GCM).

A key has one purpose, which its label says; a box key encrypts one message, hence the constant nonce.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedlearn.crypto.labels import label
from fedlearn.errors import ProtocolError

__all__ = ["BOX_OVERHEAD", "KEY_BYTES", "AgreementKey", "derive_key", "is_canonical", "open_box", "seal_box"]

KEY_BYTES: Final = 32
BOX_OVERHEAD: Final = 16

_FIELD: Final = 2**255 - 19
# A key encrypts one message only, so a nonce has nothing to tell apart.
_NONCE: Final = bytes(12)


class AgreementKey:
    """An X25519 private key, used for one attempt.

    Guarantees:
        the public key depends on the 32 raw bytes alone, which are clamped in use and never in storage;
        an exchange that gives all zeros (a point of small order) is refused;
        the secret has no repr.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        """Take the 32 raw bytes."""
        if len(seed) != KEY_BYTES:
            raise AssertionError("an agreement key has 32 bytes")
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"

    def exchange(self, peer: bytes) -> bytes:
        """The 32 bytes shared with the owner of the public key `peer`.

        Raises:
            ProtocolError: the result is all zeros: whoever sent this key chose the secret for both.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise ProtocolError("a public key of small order, or of another length than 32 bytes") from None


def is_canonical(public: bytes) -> bool:
    """Whether 32 bytes are the one encoding of a coordinate: below 2^255 - 19, little-endian."""
    return len(public) == KEY_BYTES and int.from_bytes(public, "little") < _FIELD


def derive_key(secret: bytes, *, salt: bytes, purpose: str, context: bytes, size: int) -> bytes:
    """HKDF-SHA256(secret, salt, info = L(purpose) | context): `size` bytes for this purpose and no other."""
    return HKDF(hashes.SHA256(), size, salt, label(purpose) + context).derive(secret)


def seal_box(key: bytes, message: bytes, associated: bytes) -> bytes:
    """AES-256-GCM ciphertext | tag under a key that encrypts nothing else."""
    if len(key) != KEY_BYTES:
        raise AssertionError("a box key has 32 bytes")
    return AESGCM(key).encrypt(_NONCE, message, associated)


def open_box(key: bytes, box: bytes, associated: bytes) -> bytes:
    """The message in `box`.

    Raises:
        ProtocolError: the box was not sealed under this key with these associated bytes.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, box, associated)
    except (InvalidTag, ValueError):
        raise ProtocolError("a box that does not open") from None
