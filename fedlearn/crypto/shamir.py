"""Shamir's secret sharing over the prime p = 2^256 + 297, so that every 32 bytes are a secret (Shamir 1979).

A secret is a big-endian integer below 2^256, a share 33 bytes big-endian below p. Any `threshold` shares give the
secret back; fewer say nothing about it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import ProtocolError

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "decode_share", "draw_coefficients", "share_at", "split"]

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33

_LOW_BITS: Final = (1 << PRIME.bit_length()) - 1  # 257 bits


def draw_coefficients(count: int, entropy: Entropy) -> list[int]:
    """`count` integers, uniform below p: of 33 bytes each the low 257 bits, and what is p or above drawn again."""
    drawn: list[int] = []
    while len(drawn) < count:
        size = SHARE_BYTES * (count - len(drawn))
        data = entropy(size)
        candidates = [int.from_bytes(data[at : at + SHARE_BYTES], "big") for at in range(0, size, SHARE_BYTES)]
        drawn += [low for low in (candidate & _LOW_BITS for candidate in candidates) if low < PRIME]
    return drawn


def split(secret: bytes, *, coefficients: Sequence[int], holders: int) -> list[bytes]:
    """The shares at x = 1 .. `holders` of f(x) = secret + coefficients[0] x + coefficients[1] x^2 + ...

    len(coefficients) + 1 shares give the secret back, so fresh uniform coefficients are the caller's duty.
    """
    if len(secret) != SECRET_BYTES:
        raise AssertionError("a secret has 32 bytes")
    if len(coefficients) >= holders:
        raise AssertionError("more shares needed than there are")
    if holders >= PRIME:
        raise AssertionError("shares at equal points")
    polynomial = [int.from_bytes(secret, "big"), *coefficients]
    return [_value(polynomial, x).to_bytes(SHARE_BYTES, "big") for x in range(1, holders + 1)]


def decode_share(data: bytes) -> int:
    """The share in 33 bytes.

    Raises:
        ProtocolError: another length, or p and above.
    """
    value = int.from_bytes(data, "big")
    if len(data) != SHARE_BYTES or value >= PRIME:
        raise ProtocolError("a share of another length than 33 bytes, or not below p")
    return value


def combine(shares: Mapping[int, int]) -> bytes | None:
    """The secret behind `shares`, {x: value}; None where the result is none (2^256 and above): a share is wrong.

    With wrong shares the result is some other secret; whoever combines compares it with a commitment.
    """
    secret = share_at(0, shares)
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 1 << 256 else None


def share_at(x: int, shares: Mapping[int, int]) -> int:
    """The value at `x` of the polynomial of least degree through `shares`."""
    weights = _weights(x, tuple(shares))
    return sum(weight * value for weight, value in zip(weights, shares.values(), strict=True)) % PRIME


def _value(polynomial: Sequence[int], x: int) -> int:
    # Reduced once at the end: x is small, so the sum grows by a byte a step.
    total = 0
    for coefficient in reversed(polynomial):
        total = total * x + coefficient
    return total % PRIME


@functools.lru_cache(maxsize=256)
def _weights(x: int, points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients for the value at `x`; the same responders share many secrets, hence the cache."""
    return tuple(_weight(x, point, points) for point in points)


def _weight(x: int, point: int, points: tuple[int, ...]) -> int:
    others = [other for other in points if other != point]
    above = math.prod(x - other for other in others)
    below = math.prod(point - other for other in others)
    return above * pow(below, -1, PRIME) % PRIME
