"""What can be said of rows as they are stored, before any schema: a fingerprint, and a split that is each row's own."""

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.canonical import canonical_json
from fedlearn.data.preprocessing import text_of
from fedlearn.data.readers import Table

__all__ = ["fingerprint_of", "fingerprint_of_name", "held_out"]

_SPLIT_KEY: Final = b"fedlearn/v1/public test"  # a public constant: the split is the same whatever `run.seed` is


def fingerprint_of(table: Table, salt: bytes) -> bytes:
    """32 bytes by keyed BLAKE2b (RFC 7693) over the stored rows; `salt` is secret, up to 64 bytes.

    Guarantees:
        the same rows in another order, or with their columns in another, have the same fingerprint, whatever schema
        they are read by;
        one row more, less or changed gives another one.
    """
    digests = sorted(_digest(row, salt, b"fedlearn/record") for row in _stored(table))
    return hashlib.blake2b(b"".join(digests), key=salt, digest_size=32, person=b"fedlearn/records").digest()


def fingerprint_of_name(name: str, salt: bytes) -> bytes:
    """The same for a data set that ships, which is known by its name."""
    return _digest(name.encode(), salt, b"fedlearn/shipped")


def held_out(table: Table, share: float) -> NDArray[np.bool_]:
    """Which rows (n,) are in the public test: those whose hash, as a number in [0, 1), is below `share`.

    Guarantees:
        a row's side depends on that row and `share` alone.
    """
    border = int(Fraction(repr(float(share))) * 2**256)
    digests = (_digest(row, _SPLIT_KEY, b"fedlearn/split") for row in _stored(table))
    return np.array([int.from_bytes(digest, "big") < border for digest in digests], dtype=np.bool_)


def _digest(content: bytes, key: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=32, person=person).digest()


def _stored(table: Table) -> Iterator[bytes]:
    """Each row as bytes: its cells by the names of their columns, or what is stored of a broken one."""
    names = sorted(table.columns)
    rows = zip(*(map(text_of, table.columns[name]) for name in names), strict=True)
    for number, row in enumerate(rows):
        broken = table.raw.get(number)
        yield canonical_json([names, row] if broken is None else broken)
