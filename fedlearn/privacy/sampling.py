"""Secret coins for records: the only sampling whose amplification is booked (docs/specification/privacy.md 6.1)."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.keystream import Entropy
from fedlearn.errors import ConfigError

__all__ = ["poisson_sample"]


def poisson_sample(records: int, probability: Fraction, entropy: Entropy) -> NDArray[np.int64]:
    """Indices in [0, records) of the records taken, increasing, int64; each by its own coin.

    A coin is a little-endian u64 of `entropy`, below floor(probability * 2^64) for "taken": the probability is exact to
    2^-64 and never above what is booked. The sample may be empty: such a step is noise alone, and counts.

    Guarantees:
        each record is taken with `probability`, independently of all others;
        probability 1 takes every record and draws no coin.

    Raises:
        ConfigError: `probability` is not in (0, 1].
    """
    if not 0 < probability <= 1:
        raise ConfigError(f"sampling_probability is {probability}; expected a fraction above 0 and at most 1")
    if probability == 1:  # 2^64 does not fit into a u64
        return np.arange(records, dtype=np.int64)
    coins = np.frombuffer(entropy(8 * records), dtype="<u8")
    return np.flatnonzero(coins < np.uint64(math.floor(probability * 2**64))).astype(np.int64, copy=False)
