"""Shamir's secret sharing over the prime p = 2^256 + 297, so that every 32 bytes are a secret (Shamir 1979).

A secret is a big-endian integer below 2^256, a share 33 bytes big-endian below p. Any `threshold` shares give the
secret back; fewer say nothing about it.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import ProtocolError

__all__ = [
    "PRIME",
    "SECRET_BYTES",
    "SHARE_BYTES",
    "check_factors",
    "combine",
    "decode",
    "decode_share",
    "draw_coefficients",
    "share_at",
    "split",
    "value_at",
]

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


def decode(shares: Mapping[int, int], threshold: int) -> list[int] | None:
    """The polynomial, coefficients from the constant one, of degree below `threshold` on which most of `shares` lie.

    At most floor((n - threshold) / 2) of the n shares may be wrong, wherever they are; then it is the only one (Gao
    2003). None where no polynomial is that near.
    """
    points = tuple(shares)
    through_all, vanishing = _interpolated(points, list(shares.values()))
    before, rest = vanishing, through_all
    factor_before, factor = [0], [1]
    while 2 * (len(rest) - 1) >= len(points) + threshold:
        quotient, remainder = _divided(before, rest)
        before, rest = rest, remainder
        factor_before, factor = factor, _minus(factor_before, _times(quotient, factor))
    found, left = _divided(rest, factor)
    return None if left or len(found) > threshold else found


def value_at(polynomial: Sequence[int], x: int) -> int:
    """The polynomial's value, modulo p."""
    return _value(polynomial, x)


def check_factors(points: Sequence[int], threshold: int, randomness: Entropy) -> list[int]:
    """One secret factor a point: shares at `points` on one polynomial of degree below `threshold` weigh 0 modulo p.

    Others do so with probability 1/p.
    """
    masking = draw_coefficients(len(points) - threshold, randomness)
    return [_value(masking, x) * weight % PRIME for x, weight in zip(points, _barycentric(points), strict=True)]


def _barycentric(points: Sequence[int]) -> list[int]:
    """1 / product of (x_i - x_j) over the other points."""
    return [pow(math.prod(x - other for other in points if other != x), -1, PRIME) for x in points]


def _interpolated(points: Sequence[int], values: Sequence[int]) -> tuple[list[int], list[int]]:
    """The polynomial through all points, and the monic one that is 0 at all of them."""
    vanishing = [1]
    for x in points:
        vanishing = _times(vanishing, [-x, 1])
    total = [0] * len(points)
    for x, value, weight in zip(points, values, _barycentric(points), strict=True):
        scale, carried = value * weight % PRIME, 0
        for at in range(len(points) - 1, -1, -1):  # vanishing / (X - x), from the highest coefficient
            carried = (vanishing[at + 1] + carried * x) % PRIME
            total[at] = (total[at] + scale * carried) % PRIME
    return _trimmed(total), vanishing


def _divided(above: Sequence[int], below: Sequence[int]) -> tuple[list[int], list[int]]:
    """Quotient and remainder; `below` is not zero."""
    rest, inverse, size = list(above), pow(below[-1], -1, PRIME), len(below)
    quotient = [0] * max(0, len(above) - size + 1)
    for at in reversed(range(len(quotient))):
        quotient[at] = factor = rest[at + size - 1] * inverse % PRIME
        for k, coefficient in enumerate(below):
            rest[at + k] = (rest[at + k] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _times(left: Sequence[int], right: Sequence[int]) -> list[int]:
    product = [0] * (len(left) + len(right) - 1) if left and right else []
    for i, first in enumerate(left):
        for j, second in enumerate(right):
            product[i + j] = (product[i + j] + first * second) % PRIME
    return _trimmed(product)


def _minus(left: Sequence[int], right: Sequence[int]) -> list[int]:
    pairs = itertools.zip_longest(left, right, fillvalue=0)
    return _trimmed([(first - second) % PRIME for first, second in pairs])


def _trimmed(polynomial: list[int]) -> list[int]:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
