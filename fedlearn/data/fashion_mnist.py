"""fashion-mnist: 70,000 pictures of clothes, 28 x 28 gray, ten classes (Xiao et al. 2017, arXiv:1708.07747).

Not shipped and never downloaded by a run: four idx files, plain or gzipped, in the first of these folders that has
them: the one given as `path`, Debian's package, the checkout's `.data` (what `make data` fills), torchvision's cache.
"""

import gzip
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.data.dataset import DataOptions, Dataset, Loaded, hold_out, refuse_unused
from fedlearn.errors import ConfigError, DataError
from fedlearn.task.classification import Classification

__all__ = ["find_folder", "load_fashion_mnist", "read_idx", "scale_pixels", "usual_folders"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PACKAGED = Path("usr/share/datasets/fashion-mnist")  # Debian's package, installed below / or unpacked below .data
CACHED = Path("FashionMNIST/raw")
MAX_RECORDS = 60_000  # in one file; what a header promises beyond it is refused before it is read


def load_fashion_mnist(options: DataOptions) -> Loaded:
    """60,000 records to train on, the data set's own 10,000 to test with; features (n, 1, 28, 28), pixels / 255.

    `options.public_test` holds out that share of all 70,000 instead; 0 holds out nothing. Raises ConfigError where the
    files are nowhere, DataError where they are broken.
    """
    refuse_unused(options, used=frozenset({"path"}))
    folder = find_folder(options.path, usual_folders())
    train, test = _bytes(folder, "train"), _bytes(folder, "t10k")
    if options.public_test is None:
        return Loaded(_records(*train), _records(*test))
    pixels, labels = (np.concatenate(both) for both in zip(train, test, strict=True))
    del train, test
    return hold_out(_records(pixels, labels), float(options.public_test))


def scale_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels 0..255, (n, 28, 28), as features (n, 1, 28, 28) in [0, 1]."""
    features = pixels.astype(np.float32)
    features /= np.float32(255)  # in place: all records twice would be the largest memory of a run
    return features[:, np.newaxis]


def usual_folders() -> list[Path]:
    """Where the files may lie when no path is given, in the order in which they are looked for."""
    packaged = [Path("/"), Path(__file__).resolve().parents[2] / ".data", Path(".data")]
    cached = [Path(".data"), Path("data")]
    with suppress(RuntimeError):  # a user without a home folder
        cached += [Path.home() / ".cache/torchvision", Path.home() / ".cache"]
    return [folder / PACKAGED for folder in packaged] + [folder / CACHED for folder in cached]


def find_folder(path: str | None, usual: Sequence[Path]) -> Path:
    """The first folder that has the files: at or below `path` if one is given, else in `usual`; or ConfigError."""
    folders = usual if path is None else [Path(path) / below for below in (".", CACHED, "raw", PACKAGED)]
    for folder in folders:
        if _file(folder, "train-images-idx3-ubyte"):
            return folder
    where = "in none of the usual places" if path is None else f"not in data.path {path!r}"
    raise ConfigError(
        f"the files of fashion-mnist are {where}; run `make data` in the checkout, or install Debian's package "
        "dataset-fashion-mnist, or set data.path to a folder with its four idx files (such as torchvision's "
        "FashionMNIST/raw)"
    )


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _records(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Dataset:
    return Dataset(scale_pixels(pixels), labels.astype(np.int64), Classification(CLASSES))


def _bytes(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels, labels = (_read(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if len(pixels) != len(labels) or pixels.shape[1:] != (28, 28):
        raise DataError(
            f"{folder}: {part} has pictures of shape {pixels.shape} and {len(labels)} labels; "
            "expected as many pictures of 28 x 28 pixels as labels"
        )
    if labels.size and labels.max() >= len(CLASSES):
        row = int(np.argmax(labels >= len(CLASSES)))
        raise DataError(f"{folder}: {part}, row {row + 1} has the label {labels[row]}; expected one of 0 to 9")
    return pixels, labels


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    path = _file(folder, name)
    if path is None:
        raise DataError(f"{folder} has no file {name} or {name}.gz; expected all four files of fashion-mnist")
    return read_idx(path, dimensions=3 if "idx3" in name else 1)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes, plain or gzipped (by its name): 0 0 8 `dimensions`, big-endian u32 sizes, the bytes.

    No more than what the header promises is ever unpacked, and no header may promise more than 60,000 records of
    2^10 bytes. Raises DataError for anything else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(file, dimensions, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again") from error


def _parse_idx(file: gzip.GzipFile | BufferedReader, dimensions: int, path: Path) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    if len(header) != 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is not an idx file of bytes with {dimensions} dimensions; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    record_bytes = int(np.prod(shape[1:], dtype=object))
    if shape[0] > MAX_RECORDS or record_bytes > 2**10:
        raise DataError(f"{path} promises the shape {shape}; expected at most {MAX_RECORDS} records of 28 x 28 bytes")
    content = file.read(shape[0] * record_bytes + 1)
    if len(content) != shape[0] * record_bytes:
        more = "more" if len(content) > shape[0] * record_bytes else "fewer"
        raise DataError(f"{path} holds {more} bytes than its header promises for the shape {shape}; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
