"""The order of a model's parameters in one flat vector, and the canonical bytes of a model; no torch here.

These bytes are what is sent, hashed and certified: whoever checks a model's hash needs nothing but numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ProtocolError
from fedlearn.privacy.clipping import Vector

__all__ = ["Layout", "read_model", "write_model"]

_FLOAT32 = 1  # the dtype code of the only type that a model travels in


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's parameters, in the order of `named_parameters`."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def dimension(self) -> int:
        """Number of entries of the flat vector."""
        return sum(self.sizes)

    def split(self, vector: Vector) -> dict[str, NDArray[np.float64]]:
        """The named tensors of a flat (d,) vector, float64, as views."""
        parts = np.split(vector, np.cumsum(self.sizes)[:-1])
        return {name: part.reshape(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def join(self, tensors: Mapping[str, NDArray[np.float64]]) -> Vector:
        """The flat (d,) float64 vector of named tensors; their order in the mapping does not matter."""
        flat = [np.asarray(tensors[name], dtype=np.float64).reshape(-1) for name in self.names]
        return np.concatenate(flat) if flat else np.zeros(0)

    def to_bytes(self) -> bytes:
        """Canonical bytes of the layout: those of a model without its values."""
        return b"".join(self.header(position) for position in range(len(self.names)))

    def header(self, position: int) -> bytes:
        """Canonical bytes before the values of one tensor: u16 length | name | u8 dtype | u8 rank | u32 shape."""
        name, shape = self.names[position].encode(), self.shapes[position]
        dims = b"".join(size.to_bytes(4, "big") for size in shape)
        return len(name).to_bytes(2, "big") + name + bytes([_FLOAT32, len(shape)]) + dims


def write_model(weights: Vector, layout: Layout) -> bytes:
    """Canonical bytes of a model: for each tensor its header, then float32 little-endian values.

    `weights` is (d,) float64 and is cast to float32, the type in which a model is sent, evaluated, stored and hashed.
    """
    pieces = []
    for position, values in enumerate(layout.split(weights).values()):
        pieces += [layout.header(position), values.astype("<f4").tobytes()]
    return b"".join(pieces)


def read_model(body: bytes, layout: Layout) -> Vector:
    """The (d,) float64 weights in canonical model bytes.

    Raises:
        ProtocolError: the bytes do not describe exactly this layout.
    """
    expected = sum(len(layout.header(i)) + 4 * size for i, size in enumerate(layout.sizes))
    if len(body) != expected:
        raise ProtocolError(f"model of {len(body)} bytes; expected {expected}")
    weights, offset = np.empty(layout.dimension), 0
    filled = 0
    for position, size in enumerate(layout.sizes):
        header = layout.header(position)
        if body[offset : offset + len(header)] != header:
            raise ProtocolError(f"model tensor {position} is not {layout.names[position]}")
        offset += len(header)
        weights[filled : filled + size] = np.frombuffer(body, "<f4", size, offset)
        offset += 4 * size
        filled += size
    return weights
