"""What an operator gives a data holder to join: a code, and what both prove with it.

pin     = first 16 bytes of SHA-256 of the authority's certificate in DER
code    = base32(secret 16 | pin | address)
key     = HMAC(secret, L("join") | pin)                       what the server keeps, once a code is given out
keys    = client_id 16 | Ed25519 key 32 | u16 length | Flower's key | contact
proof   = HMAC(key, L("join") | pin | keys | nonce), and the same bytes signed by the Ed25519 key
answer  = HMAC(key, L("join") | "answer" | pin | what is answered): offline, where no TLS protects it

HMAC is with SHA-256, a nonce has 32 bytes; offline, where no server can give one, it is zero. RFC 2104, RFC 4648.
"""

import base64
import binascii
import hmac
import re
from dataclasses import dataclass
from typing import Final, Self

from fedlearn.crypto.labels import label
from fedlearn.crypto.signatures import SigningKey, verify
from fedlearn.errors import ConfigError

__all__ = [
    "NO_NONCE",
    "PIN_BYTES",
    "Applicant",
    "Code",
    "answer_proof",
    "applicant_proof",
    "is_address",
    "is_proven",
    "roster_request",
    "verifier_of",
]

NO_NONCE: Final = bytes(32)
PIN_BYTES: Final = 16

_SECRET_BYTES: Final = 16
_PURPOSE: Final = "join"
_ADDRESS: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|(?=[^:]{1,253}:)(?:[A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}\.?):([0-9]{1,5})"
)
_LONGEST_CODE: Final = 600


@dataclass(frozen=True, slots=True)
class Code:
    """A one-time code. `pin` tells the authority, `address` "host:port" of the endpoint."""

    secret: bytes
    pin: bytes
    address: str

    def __repr__(self) -> str:
        return f"Code(address={self.address})"

    def to_text(self) -> str:
        """Capital letters and digits, as it is typed."""
        return base64.b32encode(self.secret + self.pin + self.address.encode("ascii")).decode("ascii").rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The code in what a person typed: case, spaces and hyphens make no difference.

        Raises:
            ConfigError: it is not a whole code.
        """
        letters = re.sub(r"[\s-]", "", text).upper()
        try:
            if len(letters) > _LONGEST_CODE:
                raise ValueError
            decoded = base64.b32decode(letters + "=" * (-len(letters) % 8))
            address = decoded[_SECRET_BYTES + PIN_BYTES :].decode("ascii")
        except (binascii.Error, ValueError):
            address = ""
        if not is_address(address):
            raise ConfigError("this is no invitation code; copy the whole of what fedlearn server invite printed")
        return cls(decoded[:_SECRET_BYTES], decoded[_SECRET_BYTES : _SECRET_BYTES + PIN_BYTES], address)


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who wants to join: `key` is a raw Ed25519 key, `node_key` one line of OpenSSH."""

    client_id: bytes
    key: bytes
    node_key: bytes
    contact: str

    def to_bytes(self) -> bytes:
        """The bytes that a proof covers; no two applicants have the same."""
        size = len(self.node_key).to_bytes(2, "big")
        return self.client_id + self.key + size + self.node_key + self.contact.encode()


def is_address(text: str) -> bool:
    """Whether a text is "host:port"."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found[2]) < 65536


def verifier_of(secret: bytes, pin: bytes) -> bytes:
    """What the server keeps of a code: a key from which the secret cannot be had."""
    return hmac.digest(secret, label(_PURPOSE) + pin, "sha256")


def applicant_proof(
    verifier: bytes, applicant: Applicant, identity: SigningKey, *, pin: bytes, nonce: bytes
) -> tuple[bytes, bytes]:
    """Proof of the code, and signature of the key that joins."""
    message = pin + applicant.to_bytes() + nonce
    return hmac.digest(verifier, label(_PURPOSE) + message, "sha256"), identity.sign(_PURPOSE, message)


def is_proven(
    verifier: bytes, applicant: Applicant, proof: bytes, signature: bytes, *, pin: bytes, nonce: bytes
) -> bool:
    """Whether both are those of `applicant` for this authority and this nonce."""
    message = pin + applicant.to_bytes() + nonce
    knows_code = hmac.compare_digest(hmac.digest(verifier, label(_PURPOSE) + message, "sha256"), proof)
    return knows_code and verify(applicant.key, signature, purpose=_PURPOSE, message=message)


def answer_proof(verifier: bytes, pin: bytes, answer: bytes) -> bytes:
    """What shows a holder that an answer came from whoever gave out its code."""
    return hmac.digest(verifier, label(_PURPOSE) + b"answer" + pin + answer, "sha256")


def roster_request(pin: bytes, client_id: bytes, nonce: bytes) -> bytes:
    """What a member signs, under the same purpose, to be given the roster."""
    return b"roster" + pin + client_id + nonce
