"""Records as pictures: one sheet in gray, a row of tiles for each stage of an attack, as a PNG."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["sheet"]

_Gray = NDArray[np.uint8]

_TILE = 72  # pixels, about
_GAP = 6
_PAPER = 255


def sheet(rows: Sequence[NDArray[np.floating]]) -> bytes:
    """The PNG of a sheet: for each of `rows`, (n, *shape) records, n tiles side by side, each with its own contrast.

    Records of one axis are drawn as a strip, the channels of an image side by side.
    """
    return _png(_stacked([_stacked([_tile(record) for record in row], axis=1) for row in rows], axis=0))


def _tile(record: NDArray[np.floating]) -> _Gray:
    flat = np.hstack(list(record)) if record.ndim == 3 else np.atleast_2d(record)
    low, high = float(flat.min()), float(flat.max())
    gray = np.round(255 * (flat - low) / ((high - low) or 1.0)).astype(np.uint8)
    factor = max(1, _TILE // max(gray.shape))
    tall = factor if record.ndim > 1 else _TILE // 2
    enlarged: _Gray = gray.repeat(tall, axis=0).repeat(factor, axis=1)
    return enlarged


def _stacked(parts: Sequence[_Gray], *, axis: int) -> _Gray:
    """`parts` one after the other along an axis, with gaps between."""
    shape = [_GAP, _GAP]
    shape[1 - axis] = parts[0].shape[1 - axis]
    gap = np.full(shape, _PAPER, dtype=np.uint8)
    spaced = [piece for part in parts for piece in (part, gap)][:-1]
    return np.concatenate(spaced, axis=axis)


def _png(gray: _Gray) -> bytes:
    """A PNG of 8-bit gray, (height, width): header, one compressed block of lines, end (RFC 2083)."""
    height, width = gray.shape
    lines = np.hstack([np.zeros((height, 1), dtype=np.uint8), gray]).tobytes()  # filter 0 before each line
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
