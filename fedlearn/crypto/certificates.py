"""X.509 certificates of a federation's own authority, and the keys by which Flower knows its nodes (RFC 5280).

All keys are ECDSA: P-256 for TLS, P-384 for Flower's nodes, whose private half Flower reads in OpenSSH's form alone.
"""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.errors import ConfigError

__all__ = ["Authority", "Certificate", "KeyPair", "new_node_key", "node_key_bytes", "node_public_key"]

_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 397
# Edge boxes have wrong clocks: a certificate of today is good for one whose clock is a day late.
_BACKDATED_DAYS: Final = 1
_HOST_NAME: Final = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}\.?")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as PEM."""

    pem: bytes

    @classmethod
    def of(cls, pem: bytes) -> Self:
        """The first certificate in PEM.

        Raises:
            ConfigError: there is none.
        """
        try:
            x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise ConfigError("not a certificate in PEM form") from None
        return cls(pem)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The first certificate in a file.

        Raises:
            ConfigError: it cannot be read, or there is none.
        """
        try:
            return cls.of(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; restore it from a backup") from None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of its DER form: 32 bytes."""
        return hashlib.sha256(self._parsed.public_bytes(serialization.Encoding.DER)).digest()

    @property
    def ends(self) -> datetime:
        """The last moment at which it is valid, in UTC."""
        return self._parsed.not_valid_after_utc

    @property
    def names(self) -> tuple[str, ...]:
        """The host names and addresses for which it is made; none for an authority."""
        try:
            listed = self._parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        return tuple(str(entry.value) for entry in listed)

    @property
    def _parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.pem)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key in PEM and the certificate for it."""

    key_pem: bytes
    certificate: Certificate

    def __repr__(self) -> str:
        return f"KeyPair({self.certificate.fingerprint.hex()})"


class Authority:
    """A federation's own certificate authority.

    Guarantees:
        what it signs is good for a server of the stated names, and for nothing else;
        the secret has no repr.
    """

    def __init__(self, pair: KeyPair) -> None:
        self.pair = pair

    @classmethod
    def new(cls) -> Self:
        """An authority with a fresh key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlearn federation")])
        builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        return cls(KeyPair(_private_pem(key), _signed(builder, key)))

    @property
    def certificate(self) -> Certificate:
        """Its own certificate, which every party pins."""
        return self.pair.certificate

    def server_pair(self, names: Sequence[str], *, days: int = _SERVER_DAYS) -> KeyPair:
        """A fresh key and a certificate for a server of these host names and addresses.

        Raises:
            ConfigError: a name that no certificate can have, or a key of the authority that is none.
        """
        key, authority_key = ec.generate_private_key(ec.SECP256R1()), self._key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlearn coordinator")])
        issuer = x509.load_pem_x509_certificate(self.certificate.pem).subject
        builder = _builder(subject, issuer, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return KeyPair(_private_pem(key), _signed(builder, authority_key))

    def _key(self) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self.pair.key_pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError("the authority's key is not a private key in PEM form; restore ca.key from a backup")
        return key


def new_node_key() -> bytes:
    """A fresh private key for a Flower node (ECDSA P-384), in OpenSSH's form."""
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def node_public_key(private: bytes) -> bytes:
    """The public half of a node's key as one line of OpenSSH, without a comment.

    Raises:
        ConfigError: not such a key.
    """
    try:
        key = serialization.load_ssh_private_key(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("not a private key in OpenSSH form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("expected an ECDSA key")
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def node_key_bytes(public: bytes) -> bytes:
    """A node's public key as Flower stores it (SubjectPublicKeyInfo in PEM), from one line of OpenSSH.

    Raises:
        ConfigError: not one line with an ECDSA key on P-384, in the one form in which OpenSSH writes it.
    """
    try:
        key = serialization.load_ssh_public_key(public)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("not a public key in OpenSSH form") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError("expected an ECDSA key on P-384")
    if key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) != public:
        raise ConfigError("a public key with something beside it")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=_BACKDATED_DAYS))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        if not _HOST_NAME.fullmatch(name) or len(name) > 253:
            raise ValueError
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(
            f'"{name}" is neither a host name, whose parts have at most 63 letters and digits, nor an address'
        ) from None


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> Certificate:
    return Certificate(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
