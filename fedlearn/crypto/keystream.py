"""The AES-256 counter keystream: masks, noise and coins all come from it (docs/protocol.md 7).

A seed has 40 bytes, key 32 | salt 8. The stream is cut into segments of 4 MiB; segment i is AES-256 in counter mode
under the 96-bit nonce salt | u32 i (big-endian), counter from 2. These are the bytes that AES-GCM makes for a plaintext
of zeros, so either mode of OpenSSL may compute them: GCM is twice as fast where the processor has AVX-512 (14 against
7.5 GB/s measured), CTR where it has not (6.5 against 3.6), hence the choice is measured once a process. A key is used
for one stream and for nothing else.
"""

import functools
import os
import threading
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from fedlearn.errors import RunFailedError

__all__ = ["SEED_BYTES", "SEGMENT_BYTES", "STREAM_BYTES", "Entropy", "Keystream", "stream_entropy"]

Entropy = Callable[[int], bytes]  # n -> n bytes nobody can predict: `os.urandom`, a stream keyed by it, a test's own

SEED_BYTES = 40
SEGMENT_BYTES = 1 << 22
STREAM_BYTES = SEGMENT_BYTES << 32

_BLOCK = 16
_FIRST_COUNTER = 2  # GCM keeps 0 for its hash key and 1 for its tag
_CHUNK = 1 << 17  # bytes a call of the cipher: small enough for the second-level cache, large enough to hide the call
_ZEROS = memoryview(bytes(_CHUNK))


class Keystream:
    """A seekable keystream; the same seed gives the same bytes on every machine.

    Guarantees:
        the bytes at an offset do not depend on how the stream is read;
        a read past the end of the stream (2^32 segments) is refused, never wrapped;
        the seed has no repr.
    """

    __slots__ = ("_key", "_salt")

    def __init__(self, seed: bytes) -> None:
        """Take a seed of 40 bytes: key 32 | salt 8."""
        if len(seed) != SEED_BYTES:
            raise AssertionError("a keystream seed has 40 bytes")
        self._key, self._salt = seed[:32], seed[32:]

    def __repr__(self) -> str:
        return "Keystream(seed=hidden)"

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on.

        Raises:
            RunFailedError: the stream ends before.
        """
        out = bytearray(length)
        self.fill(offset, out)
        return bytes(out)

    def fill(self, offset: int, out: bytearray | memoryview) -> None:
        """Write the bytes from `offset` on into all of `out`, a flat writable buffer of bytes. Releases the GIL.

        Raises:
            RunFailedError: the stream ends before.
        """
        view, done = memoryview(out), 0
        while done < len(view):
            cipher, left = self.open_at(offset + done)
            part = view[done : done + left]
            _fill_zeros(cipher, part)
            done += len(part)

    def open_at(self, offset: int) -> tuple[CipherContext, int]:
        """A cipher that turns zeros into the bytes from `offset` on, and how many it may give: to the segment's end.

        Raises:
            RunFailedError: the stream ends before.
        """
        segment, inside = divmod(offset, SEGMENT_BYTES)
        if not 0 <= segment < 1 << 32:
            raise RunFailedError(f"keystream read at byte {offset}; one key gives {STREAM_BYTES} bytes, draw a new key")
        nonce = self._salt + segment.to_bytes(4, "big")
        if inside == 0 and _gcm_is_faster():
            return Cipher(algorithms.AES(self._key), modes.GCM(nonce)).encryptor(), SEGMENT_BYTES
        blocks, skipped = divmod(inside, _BLOCK)
        counter = (_FIRST_COUNTER + blocks).to_bytes(4, "big")
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(nonce + counter)).encryptor()
        cipher.update(_ZEROS[:skipped])
        return cipher, SEGMENT_BYTES - inside


def stream_entropy(seed_source: Entropy = os.urandom) -> Entropy:
    """Fast random bytes: a keystream under 40 bytes of `seed_source`, read from front to back.

    `seed_source` is the operating system, or a test's own bytes, which make the stream repeatable.

    Guarantees:
        two streams of the operating system differ;
        no byte of the stream is given twice, whatever the number of threads;
        a forked child cannot go on with the parent's stream, which would repeat the parent's noise;
        a read past the end of the stream is refused;
        the result has no repr that shows the seed.

    Raises (the result, when called):
        RunFailedError: the stream is at its end, or belongs to another process.
    """
    return _Stream(Keystream(seed_source(SEED_BYTES)))


class _Stream:
    """Gives each byte of a keystream once."""

    __slots__ = ("_cipher", "_keystream", "_left", "_lock", "_position", "_process")

    def __init__(self, keystream: Keystream) -> None:
        self._keystream = keystream
        self._position = 0
        self._cipher: CipherContext | None = None
        self._left = 0  # bytes that the open cipher may still give
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __call__(self, size: int) -> bytes:
        if os.getpid() != self._process:
            raise RunFailedError("a random stream was read after a fork; open a new one in each process")
        with self._lock:
            out, done = bytearray(size), 0
            while done < size:
                if self._cipher is None or self._left == 0:
                    self._cipher, self._left = self._keystream.open_at(self._position)
                part = memoryview(out)[done : done + self._left]
                self._position += len(part)
                self._left -= len(part)
                _fill_zeros(self._cipher, part)
                done += len(part)
            return bytes(out)


def _fill_zeros(cipher: CipherContext, out: memoryview) -> None:
    for start in range(0, len(out), _CHUNK):
        part = out[start : start + _CHUNK]
        cipher.update_into(_ZEROS[: len(part)], part)


@functools.cache
def _gcm_is_faster() -> bool:
    """Whether GCM gives the stream faster than CTR here. The bytes are the same, so this is about speed alone."""
    return _seconds(modes.GCM(bytes(12))) < _seconds(modes.CTR(bytes(16)))


def _seconds(mode: modes.GCM | modes.CTR) -> float:
    cipher, out = Cipher(algorithms.AES(bytes(32)), mode).encryptor(), bytearray(_CHUNK)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        cipher.update_into(_ZEROS, out)
        best = min(best, time.perf_counter() - start)
    return best
