"""Files with secret keys: whoever reads one sees to it that nobody else could."""

import stat
from pathlib import Path

from fedlearn.crypto.signatures import SigningKey
from fedlearn.errors import ConfigError

__all__ = ["read_secret", "read_signing_key"]

_SEED_BYTES = 32


def read_secret(path: Path) -> bytes:
    """A key's bytes.

    Raises:
        ConfigError: it cannot be read, or others may read it.
    """
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: mode {mode & 0o777:04o} lets others read the key; run chmod 600 on it")
    return content


def read_signing_key(path: Path) -> SigningKey:
    """The long-term key whose seed is in a file.

    Raises:
        ConfigError: it cannot be read, is not 32 bytes, or others may read it.
    """
    seed = read_secret(path)
    if len(seed) != _SEED_BYTES:
        raise ConfigError(f"{path}: {len(seed)} bytes; expected the {_SEED_BYTES} of an Ed25519 key")
    return SigningKey(seed)
