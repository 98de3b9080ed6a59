"""From float64 to integers on the grid 1/scale, and to the 32-bit lanes that are summed.

Truncation is toward zero and happens once. What is truncated decides the sensitivity (docs/specification/privacy.md
3.2): one vector of bounded norm cannot grow, so a client's update keeps its bound exactly; a sum can move by one more
in each entry.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.privacy.clipping import Vector, clip_by_l2_norm

__all__ = ["IntVector", "Lanes", "from_lanes", "to_lanes", "truncate", "truncate_within"]

IntVector = NDArray[np.int64]  # grid units, (d,) or (n, d)
Lanes = NDArray[np.uint32]  # the same modulo 2^32

_BLOCK = 1 << 16
_SHRINK = 1 - 2.0**-20
_LARGEST = 2.0**62  # far above any sum that passes P*(s*R + 12*sigma) < 2^31


def truncate(vector: Vector, scale: int | Fraction, *, overwrite: bool = False) -> IntVector:
    """Multiply by `scale` and truncate toward zero, once. `vector` is finite float64, any shape; the result int64.

    With `overwrite` the result takes the memory of `vector`, which is lost.

    Guarantees:
        with a scale that is a power of two the result is exact; with another scale the product is rounded first, by
        at most 2^-52 of itself;
        no entry of the result is farther from zero than the product;
        a vector that does not fit, or is not finite, is a bug of the caller and fails.

    Raises:
        ConfigError: `scale` is not above zero.
    """
    if scale <= 0:
        raise ConfigError(f"scale is {scale}; expected a number above 0")
    grid = np.multiply(vector, float(scale), out=vector if overwrite else None)
    # Comparisons are false for NaN too.
    fits = not grid.size or -_LARGEST < grid.min() <= grid.max() < _LARGEST
    if not fits:
        raise AssertionError("a vector to truncate is finite and was clipped")
    return _truncated(grid)


def truncate_within(vector: Vector, *, scale: int | Fraction, sensitivity: int) -> IntVector:
    """Each row on the grid, its L2 norm at most `sensitivity` grid units: checked in integers, not in floats.

    For the client modes (docs/specification/privacy.md 3.2). `vector` is (d,) or (n, d), `sensitivity` is
    floor(scale * R). The vector in grid units is clipped to `sensitivity` and truncated; where float rounding leaves it
    above, it shrinks by 1 - 2^-20 and is truncated again. Conditional rounding after Kairouz et al. 2021
    (arXiv:2102.06387), made deterministic.

    Guarantees:
        the sum of squares of a row, in integers, is at most sensitivity^2, whatever the input;
        a row inside the ball is only truncated;
        no entry is farther from zero than the clipped one;
        a row that is not finite in grid units becomes zeros.

    Raises:
        ConfigError: `scale` is not above zero, or `sensitivity` not in [1, 2^31).
    """
    if not 1 <= sensitivity < 1 << 31:
        raise ConfigError(f"the sensitivity is {sensitivity} grid units; expected 1 to 2^31 - 1: change scale_bits")
    if scale <= 0:
        raise ConfigError(f"scale is {scale}; expected a number above 0")
    with np.errstate(over="ignore"):
        grid = np.asarray(vector, dtype=np.float64) * float(scale)
        clip_by_l2_norm(grid, float(sensitivity), overwrite=True)
    rows = np.atleast_2d(grid)
    for row in _longer_than(rows, sensitivity):
        while _longer_than(rows[row : row + 1], sensitivity).size:
            rows[row] *= _SHRINK
    return _truncated(grid)


def to_lanes(values: IntVector) -> Lanes:
    """Integers modulo 2^32, as uint32 of the same shape: two's complement for what fits into an int32."""
    return values.astype(np.uint32)  # int64 to uint32 keeps the low 32 bits


def from_lanes(lanes: Lanes) -> IntVector:
    """Lanes read as two's complement int32: inverse of `to_lanes` on [-2^31, 2^31)."""
    return lanes.astype(np.int32).astype(np.int64)


def _truncated(grid: Vector) -> IntVector:
    """`grid` truncated toward zero, in its own memory, block by block."""
    integers = grid.view(np.int64)
    floats, places = grid.reshape(-1), integers.reshape(-1)
    for start in range(0, floats.size, _BLOCK):
        places[start : start + _BLOCK] = np.trunc(floats[start : start + _BLOCK])
    return integers


def _longer_than(rows: Vector, sensitivity: int) -> NDArray[np.int64]:
    """Which rows, once truncated, have a sum of squares above sensitivity^2; counted in integers.

    int64 is enough: a row was clipped in float64 to `sensitivity` < 2^31, so its squares sum to at most
    2^62 * (1 + d * 2^-52) < 2^63.
    """
    squares = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, rows.shape[1], _BLOCK):
        integers = np.trunc(rows[:, start : start + _BLOCK]).astype(np.int64)
        squares += np.einsum("nd,nd->n", integers, integers)
    return np.flatnonzero(squares > sensitivity * sensitivity)
