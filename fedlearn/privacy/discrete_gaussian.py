"""Exact discrete Gaussian noise: no floating point touches it, so nothing hides in its low-order bits.

The sampler of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv:2004.00010,
algorithms 1-3), vectorized over uint64: a discrete Laplace variable of scale t = sigma, kept with probability
exp(-(|Y| - sigma)^2 / (2 sigma^2)). Every coin is rational: a word below a threshold, words above the largest multiple
of the denominator drawn again.
"""

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import ConfigError
from fedlearn.privacy.quantization import IntVector

__all__ = ["LARGEST_NOISE_STD", "discrete_gaussian"]

LARGEST_NOISE_STD = (1 << 26) - 1

_Words = NDArray[np.uint64]
_Flags = NDArray[np.bool_]
_Positions = NDArray[np.intp]

_BATCH = 1 << 15  # entries drawn together: their words stay in the second-level cache
_CANDIDATES = 2.2  # of the first step for one entry: sigma large needs 1 / (0.632 * 0.760) = 2.08
# sigma < 2^26 and V <= 64 keep (|Y| - sigma)^2 below 2^64; a larger V would be kept with probability below e^-1984.
_LARGEST_V = 64
_LARGEST_DENOMINATOR_FACTOR = 1 << 11  # 2 * sigma^2 * k < 2^64 for k below it; reached with probability 1 / (2^11)!


def discrete_gaussian(noise_std: int, dimension: int, entropy: Entropy, *, out: IntVector | None = None) -> IntVector:
    """`dimension` independent draws of the discrete Gaussian with parameter sigma = `noise_std`, as (dimension,) int64.

    They are written into `out`, (dimension,) int64, where it is given.

    P[x] is proportional to exp(-x^2 / (2 sigma^2)) on the integers; the variance is sigma^2 up to 1e-6 from sigma = 1
    on, and to 1e-300 from sigma = 8 on. A plan asks for at least 64; smaller ones are right too.

    Guarantees:
        the distribution is exact, given that `entropy` is uniform;
        the same entropy gives the same draws;
        two calls on one stream share no random word.

    Raises:
        ConfigError: `noise_std` is not an integer in [1, 2^26).
    """
    if not 1 <= noise_std <= LARGEST_NOISE_STD:
        raise ConfigError(f"noise_std is {noise_std} grid units; expected 1 to 2^26 - 1: change scale_bits")
    noise = np.empty(dimension, dtype=np.int64) if out is None else out
    for start in range(0, dimension, _BATCH):
        part = noise[start : start + _BATCH]
        filled = 0
        while filled < part.size:
            drawn = _gaussian_attempts(int((part.size - filled) * _CANDIDATES) + 64, noise_std, entropy)
            taken = drawn[: part.size - filled]
            part[filled : filled + taken.size] = taken
            filled += taken.size
    return noise


def _gaussian_attempts(candidates: int, sigma: int, entropy: Entropy) -> IntVector:
    """What is kept of `candidates` first steps: independent draws, fewer than asked, in their order."""
    laplace = _laplace_attempts(candidates, sigma, entropy)
    distance = np.abs(np.abs(laplace) - sigma).astype(np.uint64)
    double_variance = 2 * sigma * sigma
    squared = distance * distance
    whole = squared // np.uint64(double_variance)
    kept = _coins_exp(squared - whole * np.uint64(double_variance), double_variance, entropy)
    # exp(-whole) is the chance of `whole` coins of exp(-1) in a row.
    far = np.flatnonzero(kept & (whole > 0))
    kept[far] = _runs_of_coins_exp_one(far.size, entropy) >= whole[far].astype(np.int64)
    return laplace[kept]


def _laplace_attempts(candidates: int, scale: int, entropy: Entropy) -> IntVector:
    """Discrete Laplace draws sign * (U + scale * V): P[y] proportional to exp(-|y| / scale), |y| < 65 * scale."""
    uniform = _uniform_below(scale, candidates, entropy)
    uniform = uniform[_coins_exp(uniform, scale, entropy)]
    runs = _runs_of_coins_exp_one(uniform.size, entropy)
    magnitude = uniform.astype(np.int64) + scale * runs
    negative = _fair_coins(uniform.size, entropy)
    drawn: _Flags = (runs <= _LARGEST_V) & ~(negative & (magnitude == 0))  # zero has one sign
    signed = np.where(negative, -magnitude, magnitude)
    return signed[drawn]


def _coins_exp(numerators: _Words, denominator: int, entropy: Entropy) -> _Flags:
    """Coins that fall heads with probability exp(-numerator / denominator), each numerator below the denominator.

    With gamma = numerator / denominator: draw coins of gamma / 1, gamma / 2, ... until one is tails; the number drawn
    is odd with probability 1 - gamma + gamma^2 / 2! - ... = exp(-gamma).
    """
    if denominator == 1:  # every numerator is 0
        return np.ones(numerators.size, dtype=np.bool_)
    heads = np.zeros(numerators.size, dtype=np.bool_)
    alive: _Positions = np.arange(numerators.size)
    k = 1
    while alive.size:
        if k >= _LARGEST_DENOMINATOR_FACTOR:
            raise AssertionError("one in 10^5000, or the entropy is broken")
        going_on = _coins(numerators[alive], denominator * k, entropy)
        if k % 2:
            heads[alive[~going_on]] = True
        alive = alive[going_on]
        k += 1
    return heads


def _runs_of_coins_exp_one(runs: int, entropy: Entropy) -> IntVector:
    """For each of `runs`, how many coins of exp(-1) fell heads before the first tails: a geometric variable.

    The coins are one sequence, and the runs its gaps between tails, so that no coin is drawn one by one.
    """
    sequence: list[_Flags] = []
    missing = runs
    while missing > 0:
        coins = _coins_exp_one(int(missing * 1.6) + 16, entropy)  # tails come with probability 0.632
        sequence.append(coins)
        missing -= coins.size - int(np.count_nonzero(coins))
    if not sequence:
        return np.zeros(0, dtype=np.int64)
    tails = np.flatnonzero(~np.concatenate(sequence))[:runs]
    return np.diff(tails, prepend=-1) - 1


def _coins_exp_one(count: int, entropy: Entropy) -> _Flags:
    """Coins of probability exp(-1): as `_coins_exp` with gamma = 1, whose first coin always falls heads."""
    heads = np.zeros(count, dtype=np.bool_)
    alive: _Positions = np.arange(count)
    k = 2
    while alive.size:
        if k >= _LARGEST_DENOMINATOR_FACTOR:
            raise AssertionError("one in 10^5000, or the entropy is broken")
        going_on = _coins(np.ones(alive.size, dtype=np.uint64), k, entropy)
        if k % 2:
            heads[alive[~going_on]] = True
        alive = alive[going_on]
        k += 1
    return heads


def _coins(numerators: _Words, denominator: int, entropy: Entropy) -> _Flags:
    """Coins that fall heads with probability numerator / denominator exactly, each numerator below the denominator."""
    step = _step(denominator)
    return _words_below(step * denominator, numerators.size, entropy) < numerators * np.uint64(step)


def _uniform_below(bound: int, count: int, entropy: Entropy) -> _Words:
    """`count` words uniform in [0, bound), without the bias of a bare modulo."""
    if bound == 1:
        return np.zeros(count, dtype=np.uint64)
    step = _step(bound)
    words: _Words = _words_below(step * bound, count, entropy) // np.uint64(step)
    return words


def _step(bound: int) -> int:
    """The largest number with step * bound <= 2^64: [0, step * bound) falls into `bound` equal parts."""
    if not 1 < bound < 1 << 64:
        raise AssertionError("a bound of 64 bits")
    return (1 << 64) // bound


def _words_below(limit: int, count: int, entropy: Entropy) -> _Words:
    """`count` words uniform in [0, limit), 2^63 < limit <= 2^64: a word from `limit` on is drawn again."""
    words = _draw_words(count, entropy)
    largest = np.uint64(limit - 1)
    again = np.flatnonzero(words > largest)
    if again.size:
        words = words.copy()
    while again.size:
        words[again] = _draw_words(again.size, entropy)
        again = again[words[again] > largest]
    return words


def _draw_words(count: int, entropy: Entropy) -> _Words:
    return np.frombuffer(entropy(8 * count), dtype="<u8")


def _fair_coins(count: int, entropy: Entropy) -> _Flags:
    bits = np.unpackbits(np.frombuffer(entropy((count + 7) // 8), dtype=np.uint8), count=count)
    return bits.astype(np.bool_)
