"""Whom an attempt asks: the next window of a fixed seeded order, or independent secret coins."""

import os
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedlearn.config.run_config import RunConfig
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.privacy.sampling import poisson_sample

__all__ = ["choose_cohort"]


def choose_cohort(config: RunConfig, population_size: int, *, attempts_asked: int) -> list[int]:
    """The members that are asked after so many attempts that asked for vectors, sorted."""
    planned = config.secure_aggregation.planned_cohort
    if config.secure_aggregation.cohorts == "poisson":
        coins = stream_entropy(os.urandom)
        return [int(member) for member in poisson_sample(population_size, Fraction(planned, population_size), coins)]
    order, first = _rotation(config.run.seed, population_size), attempts_asked * planned
    return sorted(int(order[(first + k) % population_size]) for k in range(planned))


@lru_cache(maxsize=1)
def _rotation(seed: int, size: int) -> NDArray[np.int64]:
    """The fixed order in which clients are asked, (size,); drawn once a run, for a million take 30 ms."""
    return np.random.RandomState([seed % 2**32, 0xC0]).permutation(size)  # noqa: TID251 (public cohorts)
