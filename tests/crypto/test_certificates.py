"""A federation's own authority: what it signs is believed for its names and nothing else."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fedlearn.crypto.certificates import Authority, Certificate, KeyPair, new_node_key, node_key_bytes, node_public_key
from fedlearn.errors import ConfigError


def shake_hands(tmp_path, pair, authority, name):
    """A TLS connection on loopback to a server with `pair`, by a client that trusts `authority` and expects `name`."""
    (tmp_path / "key").write_bytes(pair.key_pem)
    (tmp_path / "certificate").write_bytes(pair.certificate.pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=authority.certificate.pem.decode())
    here, there = socket.socketpair()
    here.settimeout(5)
    there.settimeout(5)

    def serve():
        try:
            serving.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        trusting.wrap_socket(here, server_hostname=name).close()
    finally:
        here.close()
        thread.join()


@pytest.fixture(scope="module")
def authority():
    return Authority.new()


@pytest.mark.parametrize("name", ["coordinator.example.org", "10.1.2.3", "::1"])
def test_a_server_is_believed_for_its_names(authority, tmp_path, name):
    pair = authority.server_pair(["coordinator.example.org", "10.1.2.3", "::1"])
    shake_hands(tmp_path, pair, authority, name)
    assert name in pair.certificate.names


def test_a_server_of_another_name_or_another_authority_is_not(authority, tmp_path):
    pair = authority.server_pair(["coordinator.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, pair, authority, "other.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, pair, Authority.new(), "coordinator.example.org")


def test_a_servers_key_signs_no_further_certificate(authority, tmp_path):
    server = authority.server_pair(["a.example.org"])
    forged = Authority(KeyPair(server.key_pem, server.certificate)).server_pair(["b.example.org"])
    chain = KeyPair(forged.key_pem, Certificate(forged.certificate.pem + server.certificate.pem))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, chain, authority, "b.example.org")


def test_an_expired_certificate_is_not_believed(authority, tmp_path):
    pair = authority.server_pair(["a.example.org"], days=0)
    assert pair.certificate.ends < datetime.now(UTC) + timedelta(seconds=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, pair, authority, "a.example.org")


def test_a_certificate_holds_for_a_client_whose_clock_is_late(authority):
    parsed = x509.load_pem_x509_certificate(authority.server_pair(["a"]).certificate.pem)
    assert parsed.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)


@pytest.mark.parametrize("name", ["", "two words", "a/b", "x" * 300, "http://x"])
def test_what_is_no_name_is_one_sentence(authority, name):
    with pytest.raises(ConfigError, match=r"neither a host name, .* nor an address"):
        authority.server_pair([name])


def test_the_key_has_no_repr(authority):
    assert b"PRIVATE" in authority.pair.key_pem
    assert "PRIVATE" not in repr(authority.pair)


def test_a_node_key_is_as_flower_wants_it():
    private = new_node_key()
    public = node_public_key(private)
    stored = node_key_bytes(public)
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, uses_nist_ec_curve

    assert uses_nist_ec_curve(bytes_to_public_key(stored))
    assert public_key_to_bytes(bytes_to_public_key(stored)) == stored
    assert private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")


def other_line():
    """A key of another kind."""
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    "line",
    [b"", b"ecdsa", other_line(), node_public_key(new_node_key()) + b" comment"],
    ids=["nothing", "a word", "another kind", "a comment"],
)
def test_another_node_key_is_refused(line):
    with pytest.raises(ConfigError):
        node_key_bytes(line)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_one_sentence(pem):
    with pytest.raises(ConfigError, match="not a certificate in PEM form"):
        Certificate.of(pem)


@pytest.mark.parametrize(
    "private", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAA==\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_what_is_no_private_key_is_one_sentence(private):
    with pytest.raises(ConfigError, match="OpenSSH"):
        node_public_key(private)
