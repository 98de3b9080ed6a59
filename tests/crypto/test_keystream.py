"""The keystream's bytes are those of docs/protocol.md 7, wherever and however they are read."""

import hashlib
import os
import sys
import threading
from collections.abc import Iterator

import pytest
from Crypto.Cipher import AES as SLOW_AES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.crypto import keystream
from fedlearn.crypto.keystream import SEGMENT_BYTES, STREAM_BYTES, Keystream, stream_entropy
from fedlearn.errors import RunFailedError

SEED = bytes(range(40))
WINDOW = 4096
KNOWN_FIRST_BLOCK = "26e7b34d1b353f06c70802ae4d154cbb"
KNOWN_HASH = "5f22d6d642a688e1270a2e4ca5979726c4ee2db0c38afc90812c54dbbc1571d3"


def by_the_book(offset: int, length: int) -> bytes:
    """The stream block by block, in another library's plain AES: E(key, salt | u32 segment | u32 counter)."""
    block_cipher = SLOW_AES.new(SEED[:32], SLOW_AES.MODE_ECB)
    first, last = offset // 16, (offset + length + 15) // 16
    per_segment = SEGMENT_BYTES // 16
    blocks = b"".join(
        SEED[32:] + (i // per_segment).to_bytes(4, "big") + (2 + i % per_segment).to_bytes(4, "big")
        for i in range(first, last)
    )
    return block_cipher.encrypt(blocks)[offset - 16 * first :][:length]


@pytest.fixture(params=[False, True], ids=["ctr", "gcm"])
def each_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute a segment, whichever is faster on this machine."""
    monkeypatch.setattr(keystream, "_gcm_is_faster", lambda: request.param)


def test_first_bytes_are_the_known_answer():
    assert Keystream(SEED).read(0, 16).hex() == by_the_book(0, 16).hex() == KNOWN_FIRST_BLOCK


def test_first_eight_megabytes_hash_to_the_known_answer(each_mode):
    assert hashlib.sha256(Keystream(SEED).read(0, 2 * SEGMENT_BYTES + 7)).hexdigest() == KNOWN_HASH


@pytest.mark.parametrize("edge", [0, SEGMENT_BYTES, 2 * SEGMENT_BYTES, 5 * SEGMENT_BYTES])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 999])
def test_bytes_around_segment_edges_are_by_the_book(each_mode, edge, length):
    for offset in {max(0, edge - 64), max(0, edge - length), max(0, edge - 1), edge, edge + 1, edge + 63}:
        assert Keystream(SEED).read(offset, length) == by_the_book(offset, length)


@pytest.mark.parametrize("segment", [0, 1, 2**32 - 1])
def test_gcm_and_ctr_give_the_same_segment(segment):
    nonce = SEED[32:] + segment.to_bytes(4, "big")
    zeros = bytes(SEGMENT_BYTES)
    gcm = Cipher(algorithms.AES(SEED[:32]), modes.GCM(nonce)).encryptor().update(zeros)
    ctr = Cipher(algorithms.AES(SEED[:32]), modes.CTR(nonce + bytes([0, 0, 0, 2]))).encryptor().update(zeros)
    assert gcm == ctr
    assert gcm == Keystream(SEED).read(segment * SEGMENT_BYTES, SEGMENT_BYTES)


@given(offset=st.integers(0, 3 * SEGMENT_BYTES), length=st.integers(0, WINDOW))
@settings(max_examples=60, deadline=None)
def test_bytes_do_not_depend_on_how_the_stream_is_read(offset, length):
    whole = Keystream(SEED)
    halves = whole.read(offset, length // 2) + whole.read(offset + length // 2, length - length // 2)
    assert whole.read(offset, length) == halves == by_the_book(offset, length)


def test_fill_writes_all_of_the_buffer_and_nothing_else():
    frame = bytearray(b"\xaa" * 300_000)
    Keystream(SEED).fill(SEGMENT_BYTES - 100_000, memoryview(frame)[10:-10])
    assert frame[10:-10] == Keystream(SEED).read(SEGMENT_BYTES - 100_000, 299_980)
    assert frame[:10] == frame[-10:] == b"\xaa" * 10


def test_last_byte_is_given_and_the_next_is_refused():
    assert Keystream(SEED).read(STREAM_BYTES - 5, 5) == by_the_book(STREAM_BYTES - 5, 5)
    with pytest.raises(RunFailedError, match="draw a new key"):
        Keystream(SEED).read(STREAM_BYTES - 5, 6)
    with pytest.raises(RunFailedError):
        Keystream(SEED).read(-1, 1)


def test_each_bit_of_the_seed_changes_the_stream():
    flipped = [(int.from_bytes(SEED, "big") ^ (1 << bit)).to_bytes(40, "big") for bit in range(320)]
    assert len({Keystream(seed).read(0, 32) for seed in [SEED, *flipped]}) == 321


def test_secrets_have_no_repr():
    entropy = stream_entropy(lambda size: SEED[:size])
    for text in (repr(Keystream(SEED)), repr(entropy), str(entropy)):
        assert SEED[:4].hex() not in text
        assert "x01" not in text


def test_stream_gives_the_keystream_from_front_to_back():
    entropy = stream_entropy(lambda size: SEED[:size])
    sizes = [1, 0, 7, 16, 100_001, SEGMENT_BYTES, 3, SEGMENT_BYTES + 5, 1]
    assert b"".join(entropy(size) for size in sizes) == Keystream(SEED).read(0, sum(sizes))


def test_r03_two_streams_of_the_operating_system_differ():
    assert stream_entropy()(32) != stream_entropy()(32)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(usual)


def test_threads_that_share_a_stream_read_it_without_gap_or_overlap(eager_threads):
    """Each read crosses a segment's end, where a reader without the lock would open the same segment twice."""
    size, reads = SEGMENT_BYTES // 2 + 4, 6
    entropy, pieces = stream_entropy(lambda size: SEED[:size]), []
    threads = [threading.Thread(target=lambda: pieces.extend(entropy(size) for _ in range(reads))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(pieces) == {Keystream(SEED).read(i * size, size) for i in range(3 * reads)}


def test_a_forked_child_cannot_repeat_the_parents_bytes():
    entropy = stream_entropy()
    child = os.fork()
    if child == 0:
        try:
            entropy(1)
        except RunFailedError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_stream_refuses_to_run_past_its_end():
    entropy = keystream._Stream(Keystream(SEED))
    entropy._position = STREAM_BYTES - 8
    assert entropy(8) == by_the_book(STREAM_BYTES - 8, 8)
    with pytest.raises(RunFailedError, match="draw a new key"):
        entropy(1)
