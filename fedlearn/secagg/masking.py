"""Masks: adding keystreams to lanes modulo 2^32, and the three check words behind a vector's entries.

A chunk of the accumulator stays in the second-level cache while every keystream runs over it, so that the vector passes
through memory once, not once a neighbor.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto.keystream import SEGMENT_BYTES, Keystream
from fedlearn.privacy.quantization import Lanes
from fedlearn.secagg.transcript import CHECK_LANES, LANE_BYTES, check_seeds

__all__ = ["MaskedVector", "add_keystreams", "check_words_hold", "with_check_words"]

MaskedVector = NewType("MaskedVector", NDArray[np.uint32])  # (d + 3,) lanes that may leave the client

_CHUNK: Final = 1 << 19  # a call long enough that threads do not wait for each other; 1.3x 256 KiB with two threads
# With many ciphers open, their key schedules and tables want a part of the cache.
_SMALL_CHUNK: Final = 1 << 17
_MANY: Final = 64
_ZEROS: Final = memoryview(bytes(_CHUNK))


def add_keystreams(lanes: Lanes, plus: Sequence[bytes], minus: Sequence[bytes], *, threads: int = 1) -> None:
    """Add the keystreams of the seeds `plus` to `lanes`, and subtract those of `minus`, in place, modulo 2^32.

    `lanes` is (n,) uint32, contiguous; a seed has 40 bytes. Lane k of a keystream is its bytes 4k to 4k+3,
    little-endian.

    Guarantees:
        the result does not depend on the number of threads;
        the same seeds under `minus` take away what they added under `plus`.
    """
    segments = range(0, len(lanes) * LANE_BYTES, SEGMENT_BYTES)
    if threads == 1 or not segments or not (plus or minus):
        _add_segments(lanes, plus, minus, segments)
    elif len(segments) >= threads:
        parts = [segments[worker::threads] for worker in range(threads)]
        _in_threads(threads, lambda worker: _add_segments(lanes, plus, minus, parts[worker]))
    else:
        _add_by_seeds(lanes, plus, minus, threads)


def with_check_words(lanes: Lanes, masking_hash: bytes) -> Lanes:
    """A copy of `lanes`, (d,), with the three check words behind it: a one, and two keyed sums of all entries."""
    words = [1, *(_keyed_sum(lanes, seed) for seed in check_seeds(masking_hash))]
    return np.concatenate([lanes, np.array(words, dtype=np.uint32)])


def check_words_hold(total: Lanes, masking_hash: bytes, survivors: int) -> bool:
    """Whether an unmasked sum, (d + 3,), has the check words of so many honest vectors.

    A mask taken away wrongly passes with 2^-96. A client can always lie consistently: it chooses its vector.
    """
    entries, words = total[:-CHECK_LANES], [int(word) for word in total[-CHECK_LANES:]]
    return words == [survivors, *(_keyed_sum(entries, seed) for seed in check_seeds(masking_hash))]


def _keyed_sum(lanes: Lanes, seed: bytes) -> int:
    """Sum of r_k x_k modulo 2^32, with r the keystream of `seed`."""
    stream, total = Keystream(seed), 0
    buffer = bytearray(_CHUNK)
    keys = np.frombuffer(buffer, dtype="<u4")
    for start in range(0, len(lanes), len(keys)):
        part = lanes[start : start + len(keys)]
        stream.fill(start * LANE_BYTES, memoryview(buffer)[: LANE_BYTES * len(part)])
        total += int(np.einsum("k,k->", keys[: len(part)], part))  # wraps modulo 2^32 and makes no copy
    return total % (1 << 32)


def _add_segments(lanes: Lanes, plus: Sequence[bytes], minus: Sequence[bytes], segments: range) -> None:
    chunk = _SMALL_CHUNK if len(plus) + len(minus) > _MANY else _CHUNK
    buffer = bytearray(chunk)
    mask = np.frombuffer(buffer, dtype="<u4")
    view = memoryview(buffer)
    for offset in segments:
        open_ciphers = [
            (Keystream(seed).open_at(offset)[0].update_into, operation)
            for seeds, operation in ((plus, np.add), (minus, np.subtract))
            for seed in seeds
        ]
        segment = lanes[offset // LANE_BYTES : (offset + SEGMENT_BYTES) // LANE_BYTES]
        for start in range(0, len(segment), len(mask)):
            part = segment[start : start + len(mask)]
            zeros, out, stream = _ZEROS[: part.nbytes], view[: part.nbytes], mask[: len(part)]
            for update_into, operation in open_ciphers:
                update_into(zeros, out)
                operation(part, stream, out=part)


def _add_by_seeds(lanes: Lanes, plus: Sequence[bytes], minus: Sequence[bytes], threads: int) -> None:
    """Fewer segments than threads: each thread sums its share of the seeds into lanes of its own."""
    partial = np.zeros((threads, len(lanes)), dtype=np.uint32)
    everything = range(0, len(lanes) * LANE_BYTES, SEGMENT_BYTES)

    def add(worker: int) -> None:
        _add_segments(partial[worker], plus[worker::threads], minus[worker::threads], everything)

    _in_threads(threads, add)
    for part in partial:
        np.add(lanes, part, out=lanes)


def _in_threads(threads: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
