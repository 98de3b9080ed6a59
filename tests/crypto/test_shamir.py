"""Any threshold of shares gives the secret back; one fewer fits every secret."""

import hashlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.crypto.keystream import stream_entropy
from fedlearn.crypto.shamir import PRIME, SHARE_BYTES, combine, decode_share, draw_coefficients, share_at, split
from fedlearn.errors import ProtocolError

SECRETS = st.binary(min_size=32, max_size=32)


def entropy(name: bytes):
    return stream_entropy(lambda size: hashlib.shake_256(name).digest(size))


def test_the_modulus_is_prime():
    """Miller-Rabin with 64 bases: a composite passes with probability below 2^-128."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(64):
        x = pow(Random(_).randrange(2, PRIME - 1), odd, PRIME)
        powers = [pow(x, 2**k, PRIME) for k in range(twos)]
        assert x == 1 or PRIME - 1 in powers
    assert PRIME == 2**256 + 297


@settings(deadline=None, max_examples=50)
@given(SECRETS, st.integers(1, 12), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, data):
    holders = data.draw(st.integers(threshold, 14))
    shares = split(secret, coefficients=draw_coefficients(threshold - 1, entropy(secret)), holders=holders)
    chosen = data.draw(st.permutations(range(1, holders + 1)))[:threshold]
    assert combine({x: decode_share(shares[x - 1]) for x in chosen}) == secret


@settings(deadline=None, max_examples=50)
@given(SECRETS, SECRETS, st.integers(2, 9))
def test_one_share_fewer_fits_every_secret(secret, other, threshold):
    """For any other secret there are coefficients that give the same t - 1 shares."""
    shares = split(secret, coefficients=draw_coefficients(threshold - 1, entropy(secret)), holders=threshold)
    known = {x: decode_share(shares[x - 1]) for x in range(1, threshold)}
    through = known | {0: int.from_bytes(other, "big")}
    polynomial = {x: share_at(x, through) for x in range(1, threshold + 1)}
    assert combine(polynomial) == other
    assert {x: polynomial[x] for x in known} == known


def test_shares_of_the_largest_cohort():
    secret = bytes(range(32))
    shares = split(secret, coefficients=draw_coefficients(170, entropy(b"256")), holders=256)
    assert combine({x: decode_share(shares[x - 1]) for x in range(86, 257)}) == secret


def test_coefficients_are_uniform_below_the_prime():
    """257 bits drawn, p and above drawn again: about half. Mean of 2,000 within 5 standard deviations (6e-7)."""
    drawn = draw_coefficients(2000, entropy(b"uniform"))
    assert max(drawn) < PRIME
    assert abs(sum(drawn) / 2000 / PRIME - 0.5) < 5 * (1 / 12 / 2000) ** 0.5


def test_a_candidate_at_the_prime_is_drawn_again():
    """The low 257 bits of 33 bytes: of 0xfe ... 07 only the 7 is left."""
    stream = iter(PRIME.to_bytes(33, "big") + (PRIME - 1).to_bytes(33, "big") + b"\xfe" + bytes(31) + b"\x07")
    assert draw_coefficients(2, lambda size: bytes(next(stream) for _ in range(size))) == [PRIME - 1, 7]


@pytest.mark.parametrize("data", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_what_is_no_share_is_refused(data):
    with pytest.raises(ProtocolError):
        decode_share(data)


def test_a_result_that_is_no_secret_is_none():
    assert combine({1: 2**256, 2: 2**256}) is None
    assert combine({1: PRIME - 1, 2: PRIME - 1}) is None


def test_a_wrong_share_gives_another_secret():
    shares = split(bytes(32), coefficients=[5, 7], holders=3)
    values = {x: decode_share(share) for x, share in enumerate(shares, start=1)}
    assert combine(values | {2: values[2] + 1}) != bytes(32)
    assert all(len(share) == SHARE_BYTES for share in shares)
