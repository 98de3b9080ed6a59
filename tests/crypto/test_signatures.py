"""What an identity signs for one purpose is valid for that purpose alone."""

from itertools import permutations

import pytest

from fedlearn.crypto.labels import SIGNATURE_LABELS, label
from fedlearn.crypto.signatures import SigningKey, equal_in_constant_time, verify

KEY = SigningKey(bytes(range(32)))


@pytest.mark.parametrize("purpose", SIGNATURE_LABELS)
def test_a_signature_is_valid_for_its_purpose(purpose):
    assert verify(KEY.public, KEY.sign(purpose, b"message"), purpose=purpose, message=b"message")


@pytest.mark.parametrize(("purpose", "other"), list(permutations(SIGNATURE_LABELS, 2)))
def test_a_signature_is_invalid_under_every_other_label(purpose, other):
    signature = KEY.sign(purpose, b"message")
    assert not verify(KEY.public, signature, purpose=other, message=b"message")
    assert not verify(KEY.public, signature, purpose=other, message=label(purpose) + b"message")


def test_another_message_key_or_length_is_invalid():
    signature = KEY.sign("adv", b"message")
    assert not verify(KEY.public, signature, purpose="adv", message=b"another")
    assert not verify(SigningKey(bytes(32)).public, signature, purpose="adv", message=b"message")
    for wrong in (b"", signature[:-1], signature + b"\x00", bytes(64)):
        assert not verify(KEY.public, wrong, purpose="adv", message=b"message")
    assert not verify(bytes(31), signature, purpose="adv", message=b"message")


def test_an_identity_signs_nothing_without_a_label():
    for purpose in ("", "b", "anything"):
        with pytest.raises(AssertionError):
            KEY.sign(purpose, b"message")


def test_secrets_have_no_repr():
    assert bytes(range(32)).hex() not in repr(KEY)


def test_comparison_is_that_of_bytes():
    assert equal_in_constant_time(b"same", b"same")
    assert not equal_in_constant_time(b"same", b"other")
