"""A name for a set of records that tells nothing about them to whoever lacks the salt."""

import hashlib

from fedlearn.data.dataset import Dataset

__all__ = ["fingerprint_of"]


def fingerprint_of(records: Dataset, salt: bytes) -> bytes:
    """32 bytes by keyed BLAKE2b (RFC 7693) over the records as the model sees them; `salt` is secret, up to 64 bytes.

    Guarantees:
        the same records in another order have the same fingerprint;
        one record more, less or changed gives another one.
    """
    features, labels = records.features.astype("<f4"), records.labels.astype("<i8")
    digests = sorted(
        hashlib.blake2b(row.tobytes() + label.tobytes(), key=salt, digest_size=32, person=b"fedlearn/record").digest()
        for row, label in zip(features, labels, strict=True)
    )
    return hashlib.blake2b(b"".join(digests), key=salt, digest_size=32, person=b"fedlearn/records").digest()
