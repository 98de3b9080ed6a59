"""Features that take minutes to compute, kept on disk under the hash of what they were computed from."""

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.host.home import home_folder

__all__ = ["cache_folder", "cached"]


def cache_folder() -> Path:
    """Where features are kept: `cache` below $FEDLEARN_HOME, else below ~/.fedlearn."""
    return home_folder() / "cache"


def cached(
    recipe: str,
    records: NDArray[np.float32],
    *,
    shape: tuple[int, ...],
    compute: Callable[[NDArray[np.float32]], None],
) -> NDArray[np.float32]:
    """The float32 array of `shape` that `compute` writes, from disk if `recipe` was applied to `records` before.

    `recipe` names the computation and its version. The result is mapped into memory copy-on-write, so what nobody reads
    costs no memory. It tells as much as the records do: folder and files are for their owner alone.

    Guarantees: a file appears under its final name only when it is whole; a file of another shape or type is replaced.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    digest = blake2b(f"fedlearn/v1/features|{recipe}|{records.shape}|".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(records, dtype="<f4").data)
    path = cache_folder() / f"{digest.hexdigest()}.npy"
    found = _read(path, shape)
    if found is not None:
        return found
    try:
        _write(path, shape, compute)
    except OSError as error:
        raise ConfigError(
            f"features cannot be kept in {path.parent} ({error.strerror or error}); make room there, or set "
            "FEDLEARN_HOME to a folder that can be written"
        ) from error
    found = _read(path, shape)
    if found is None:
        raise AssertionError("what was just written can be read")
    return found


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    try:
        found = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError):
        return None
    return found if found.shape == shape and found.dtype == np.dtype("<f4") else None


def _write(path: Path, shape: tuple[int, ...], compute: Callable[[NDArray[np.float32]], None]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        unfinished.touch(mode=0o600)
        features = np.lib.format.open_memmap(unfinished, mode="w+", dtype="<f4", shape=shape)
        compute(features)
        features.flush()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
