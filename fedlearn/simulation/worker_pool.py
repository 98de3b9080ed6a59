"""Who computes the sum of a cohort: this process, others beside it, or other machines; the sum is the same.

A cohort is cut into chunks whose size does not depend on who works. A chunk brings the seed of its coins and of the
noise of its steps, drawn once: where a worker was lost, its chunk is computed again from the same seed, so that no
release is noised twice. What chunks give are integers, so their order does not matter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.crypto.keystream import SEED_BYTES, Entropy, stream_entropy
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.quantization import IntVector
from fedlearn.training.stacked.trainer import even_parts

__all__ = ["Chunk", "OneProcess", "SeededEntropy", "SumOfChunk", "WorkerPool", "chunks_of"]

_MOST_CHUNKS: Final = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some members of a cohort in one round, and the seed of all randomness in their local work."""

    members: tuple[int, ...]
    round_number: int
    seed: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON, for a worker of the same run."""
        return canonical_json({"members": list(self.members), "round": self.round_number, "seed": self.seed.hex()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Chunk":
        """The chunk in such bytes.

        Raises:
            ConfigError: they are no JSON, or beyond its bounds.
        """
        values = read_json(data, what="a chunk")
        return cls(tuple(values["members"]), values["round"], bytes.fromhex(values["seed"]))


# (weights (d,), chunk) -> what its members' vectors sum up to on the grid, without shares of noise, (d,) int64
SumOfChunk = Callable[[Vector, Chunk], IntVector]


class WorkerPool(Protocol):
    """Computes chunks."""

    def clean_sum(self, weights: Vector, chunks: Sequence[Chunk]) -> IntVector:
        """The sum of all chunks, (d,) int64.

        Raises:
            RunFailedError: nobody is left to compute them.
        """

    def close(self) -> None:
        """Let everybody go."""


class SeededEntropy:
    """Entropy that starts anew from the seed of each chunk."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream: Entropy | None = None

    def __call__(self, size: int) -> bytes:
        if self._stream is None:
            raise AssertionError("no chunk is being computed")
        return self._stream(size)

    def begin(self, seed: bytes) -> None:
        """Give the stream under `seed`, 40 bytes, from its front on."""
        self._stream = stream_entropy(lambda _: seed)


def chunks_of(members: Sequence[int], round_number: int, *, block: int, entropy: Entropy) -> Iterator[Chunk]:
    """A cohort in as many even parts as it has blocks of `block` clients who are trained together, at most 64."""
    for part in even_parts(len(members), block, most=_MOST_CHUNKS):
        yield Chunk(tuple(members[part]), round_number, entropy(SEED_BYTES))


@dataclass(frozen=True, slots=True)
class OneProcess:
    """This process alone, chunk after chunk."""

    sum_of_chunk: SumOfChunk

    def clean_sum(self, weights: Vector, chunks: Sequence[Chunk]) -> IntVector:
        """As `WorkerPool`."""
        total = np.zeros(len(weights), dtype=np.int64)
        for chunk in chunks:
            total += self.sum_of_chunk(weights, chunk)
        return total

    def close(self) -> None:
        """Nobody to let go."""
