"""Agreement, derivation and boxes: one purpose a key, and nothing from a point of small order."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.crypto.agreement import AgreementKey, derive_key, is_canonical, open_box, seal_box
from fedlearn.crypto.labels import DERIVATION_LABELS, HASH_LABELS, SIGNATURE_LABELS, label
from fedlearn.errors import ProtocolError

SEEDS = st.binary(min_size=32, max_size=32)


@given(SEEDS, SEEDS)
def test_both_sides_agree(one, other):
    assert AgreementKey(one).exchange(AgreementKey(other).public) == AgreementKey(other).exchange(
        AgreementKey(one).public
    )


def test_public_key_is_that_of_the_clamped_scalar():
    """Two seeds that clamp to one scalar have one public key: a reconstructed seed is compared through it."""
    seed = bytes(range(32))
    assert AgreementKey(seed).public == AgreementKey(bytes([seed[0] | 7]) + seed[1:]).public


@pytest.mark.parametrize("peer", [bytes(32), b"\x01" + bytes(31), bytes(31), bytes(33), b""])
def test_a_point_of_small_order_or_another_length_is_refused(peer):
    with pytest.raises(ProtocolError):
        AgreementKey(bytes(range(32))).exchange(peer)


@pytest.mark.parametrize(
    ("value", "canonical"), [(0, True), (2**255 - 20, True), (2**255 - 19, False), (2**255, False)]
)
def test_canonical_keys_are_below_the_field(value, canonical):
    assert is_canonical(value.to_bytes(32, "little")) == canonical


def test_a_key_of_another_length_is_not_canonical():
    assert not is_canonical(bytes(31))


def test_derivation_is_hkdf_with_the_label_in_front():
    block = hmac.new(hmac.new(b"salt", b"secret", "sha256").digest(), label("pair") + b"context\x01", "sha256").digest()
    assert derive_key(b"secret", salt=b"salt", purpose="pair", context=b"context", size=32) == block


def test_each_purpose_gives_another_key():
    keys = {derive_key(bytes(32), salt=bytes(32), purpose=p, context=b"", size=40) for p in DERIVATION_LABELS}
    assert len(keys) == len(DERIVATION_LABELS)


def test_no_label_is_the_beginning_of_another():
    labels = [label(purpose) for purpose in HASH_LABELS + DERIVATION_LABELS + SIGNATURE_LABELS]
    assert len(set(labels)) == len(labels)
    assert not any(a != b and b.startswith(a) for a in labels for b in labels)
    assert label("u1") == b"\x15fedlearn/secagg/v1/u1"


def test_an_unknown_purpose_has_no_label():
    with pytest.raises(AssertionError):
        label("anything")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_box_opens_with_its_key_and_associated_bytes(message, associated):
    key = hashlib.sha256(associated).digest()
    assert open_box(key, seal_box(key, message, associated), associated) == message


@pytest.mark.parametrize("box", [b"", bytes(15), bytes(16), bytes(82)])
def test_a_box_that_was_not_sealed_is_refused(box):
    with pytest.raises(ProtocolError):
        open_box(bytes(32), box, b"")


def test_another_key_or_associated_bytes_do_not_open_it():
    box = seal_box(bytes(32), b"message", b"associated")
    for key, associated in ((b"\x01" * 32, b"associated"), (bytes(32), b"other")):
        with pytest.raises(ProtocolError):
            open_box(key, box, associated)


def test_secrets_have_no_repr():
    assert bytes(range(32)).hex() not in repr(AgreementKey(bytes(range(32))))
