"""Bound the length of a vector: everything that leaves a client is clipped before it is rounded and hidden."""

import math

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError

__all__ = ["Vector", "clip_by_l2_norm"]

Vector = NDArray[np.float64]  # (d,), or a stack of clients (n, d)


def clip_by_l2_norm(vector: Vector, clipping_norm: float) -> Vector:
    """Scale each row of `vector` down until its L2 norm is at most `clipping_norm`; a new array of the same shape.

    `vector` is (d,) or (n, d), each row one vector; other real types are read as float64.

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
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    clipped = np.where(finite, rows, 0.0)
    if clipped.size == 0:
        return clipped.reshape(vector.shape)
    # Squares overflow above 1e154 and vanish below 1e-162: measure each row in units of a power of two near its peak.
    exponents = np.frexp(np.abs(clipped).max(axis=1))[1]
    units = np.ldexp(1.0, np.clip(exponents, -1000, 1000))
    # einsum sums each row by itself in a fixed order and, unlike a matrix product, on one thread.
    scaled = clipped / units[:, np.newaxis]
    norms = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    with np.errstate(over="ignore"):  # a bound that is infinite in tiny units is one that no row passes
        outside = norms > clipping_norm / units
    clipped[outside] = scaled[outside] * (clipping_norm / norms[outside])[:, np.newaxis]
    return clipped.reshape(vector.shape)
