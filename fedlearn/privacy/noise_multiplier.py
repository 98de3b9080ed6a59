"""The noise multiplier z: what shares of integer noise book, and the least that will do.

z counts in integers, thousandths where it is chosen and millionths where it is booked, so that all parties agree.
"""

import math
from collections.abc import Callable

from fedlearn.privacy.refusals import refuse_if

__all__ = ["least_integer", "least_noise_std", "z_booked_millionths"]

_LARGEST_THOUSANDTHS = 10**9


def z_booked_millionths(noise_std: int, *, shares: int, sensitivity: int) -> int:
    """The noise multiplier that `shares` shares of standard deviation `noise_std` book, in millionths, rounded down.

    isqrt(10^12 * (12 h sigma^2 - 1) // (12 Delta^2)): the variance less 1/12 is that of the continuous Gaussian whose
    rounding ours is near to (docs/specification/privacy.md 2.3).
    """
    return math.isqrt(10**12 * (12 * shares * noise_std**2 - 1) // (12 * sensitivity**2))


def least_noise_std(thousandths: int, *, shares: int, sensitivity: int) -> int:
    """The least integer noise_std with which `shares` shares book at least `thousandths` / 1000."""
    # 12 h sigma^2 - 1 >= 12 Delta^2 k^2 / 10^6, solved for the integer sigma
    numerator = 12 * sensitivity**2 * thousandths**2 + 10**6
    square = -(-numerator // (12 * shares * 10**6))
    return math.isqrt(square - 1) + 1


def least_integer(passes: Callable[[int], bool], start: int) -> int:
    """The least integer >= 1 that passes, for a monotone test, found by galloping from `start`."""
    step, low, high = 1, 0, start
    if passes(start):
        while high > 1 and passes(max(1, high - step)):
            high, step = max(1, high - step), 2 * step
        low = max(0, high - step)
    else:
        low = start
        while not passes(high := low + step):
            low, step = high, 2 * step
            refuse_if(
                high > _LARGEST_THOUSANDTHS,
                "privacy.target_epsilon is out of reach at this delta; expected a larger target_epsilon or delta",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
