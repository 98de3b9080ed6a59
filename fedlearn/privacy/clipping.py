"""Bound the length of a vector: everything that leaves a client is clipped before it is rounded and hidden."""

import math

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError

__all__ = ["Vector", "clip_by_l2_norm"]

Vector = NDArray[np.float64]  # (d,), or a stack of clients (n, d)

_BLOCK = 1 << 16


def clip_by_l2_norm(vector: Vector, clipping_norm: float, *, overwrite: bool = False) -> Vector:
    """Scale each row of `vector` down until its L2 norm is at most `clipping_norm`; a new array of the same shape.

    `vector` is (d,) or (n, d), each row one vector; other real types are read as float64. With `overwrite` the result
    takes the memory of `vector`, which is lost.

    Guarantees:
        a row inside the ball is returned unchanged;
        a row outside keeps its direction and gets the norm `clipping_norm`, up to float64 rounding;
        a row that is not finite becomes zeros (a refusal would show it);
        no size overflows or underflows, from denormals to the largest finite numbers;
        a row's result does not depend on the other rows.

    Raises:
        ConfigError: `clipping_norm` is not a finite number above zero.
    """
    if not (math.isfinite(clipping_norm) and clipping_norm > 0):
        raise ConfigError(f"clipping_norm is {clipping_norm}; expected a finite number above 0")
    vector = np.asarray(vector, dtype=np.float64)
    rows = np.atleast_2d(vector)
    clipped = rows if overwrite else rows.copy()
    clipped[~np.isfinite(rows).all(axis=1)] = 0.0
    if clipped.size == 0:
        return clipped.reshape(vector.shape)
    # Squares overflow above 1e154 and vanish below 1e-162: measure each row in units of a power of two near its peak.
    peaks = np.maximum(clipped.max(axis=1), -clipped.min(axis=1))
    units = np.ldexp(1.0, np.clip(np.frexp(peaks)[1], -1000, 1000))
    norms = np.sqrt(_squares(clipped, units))
    with np.errstate(over="ignore"):  # a bound that is infinite in tiny units is one that no row passes
        outside = norms > clipping_norm / units
    for row in np.flatnonzero(outside):
        clipped[row] /= units[row]
        clipped[row] *= clipping_norm / norms[row]
    return clipped.reshape(vector.shape)


def _squares(rows: Vector, units: Vector) -> Vector:
    """Sum of squares of each row in its own unit, (n,); block by block, so that no second copy of the rows is made."""
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], _BLOCK):
        scaled = rows[:, start : start + _BLOCK] / units[:, np.newaxis]
        # einsum sums each row by itself in a fixed order and, unlike a matrix product, on one thread.
        total += np.einsum("nd,nd->n", scaled, scaled)
    return total
