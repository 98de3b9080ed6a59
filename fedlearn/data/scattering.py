"""Fixed scattering features of images: two layers of Morlet wavelets, nothing learned, nothing fitted on records.

After Bruna and Mallat, "Invariant scattering convolution networks" (2013), with the filters of kymatio (Andreux et al.
2020) at J = 2 and eight angles, and the normalization in groups of channels of Tramer and Boneh (2021): each group of a
record is brought to mean 0 and variance 1 over itself, so a record's features depend on that record alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from fedlearn.errors import ConfigError

__all__ = ["SCATTERING", "Progress", "scatter", "scattering_shape"]

Progress = Callable[[int, int], None]  # records done, records in all

SCATTERING = "scattering 1: J 2, 8 angles"  # part of the name of kept features: count up when a feature changes

_Images = NDArray[np.float32]
_Filter = NDArray[np.float64]

_ANGLES = 8
_CHANNELS = {1: 1 + 2 * _ANGLES, 2: 1 + 2 * _ANGLES + _ANGLES * _ANGLES}
_GROUPS = {1: 17, 2: 27}  # public constants: groups of one channel, of three
_BLUR = 0.8  # a wavelet's width in pixels at scale 0; the average is as wide as a wavelet of the last scale
_FREQUENCY = 3 * np.pi / 4  # a wavelet's center at scale 0, radians a pixel
_MARGIN = 4  # pixels of reflection on each side: one pixel of the output, cut off again
_REPORTED = 128  # records from one call of `progress` to the next


@dataclass(frozen=True, slots=True)
class _Bank:
    """Filters for padded images of one size: wavelets in the frequency domain, averages in space."""

    fine: NDArray[np.float32]  # (angles, h, w): scale 0, at full resolution
    coarse: NDArray[np.float32]  # (angles, h, w): scale 1, at full resolution
    averages: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]  # resolution -> (h/4 - 2, h/r), (w/4 - 2, w/r)


def scattering_shape(image_shape: tuple[int, ...], order: int) -> tuple[int, ...]:
    """Shape of one record's features: 17 channels (order 1) or 81 (order 2), each a quarter as high and wide.

    Raises:
        ConfigError: another order, or images that are not (1, height, width) with sides divisible by four, at least 8.
    """
    if order not in _CHANNELS:
        raise ConfigError(f"model.options.order is {order!r}; expected 1 or 2")
    if len(image_shape) != 3 or image_shape[0] != 1 or any(side % 4 or side < 8 for side in image_shape[1:]):
        raise ConfigError(
            f"scattering features need images of shape (1, height, width) with sides divisible by 4; "
            f'this data set has {tuple(image_shape)}: take "linear", "mlp" or a model of your own'
        )
    return _CHANNELS[order], image_shape[1] // 4, image_shape[2] // 4


def scatter(images: _Images, *, order: int, out: _Images, progress: Progress | None = None) -> None:
    """Write the scattering features of `images` (n, 1, height, width) into `out` (n, *scattering_shape).

    Guarantees:
        a record's features do not depend on the other records, to the bit;
        each group of channels of a record has mean 0 and variance 1, or less where it hardly varies.
    """
    _, height, width = scattering_shape(images.shape[1:], order)
    bank = _filters(4 * height + 2 * _MARGIN, 4 * width + 2 * _MARGIN)
    for row in range(len(images)):  # by itself: in a batch its last bits could hang on its place
        out[row : row + 1] = _normalize(_coefficients(images[row : row + 1, 0], bank, order), _GROUPS[order])
        if progress is not None and ((row + 1) % _REPORTED == 0 or row + 1 == len(images)):
            progress(row + 1, len(images))


def _coefficients(images: _Images, bank: _Bank, order: int) -> _Images:
    """(n, channels, height/4, width/4) before normalization: the average, then each wavelet's, then each pair's."""
    sides = (0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)
    padded = np.pad(images, sides, mode="reflect")
    spectrum = fft.fft2(padded)[:, np.newaxis]
    fine = np.abs(fft.ifft2(spectrum * bank.fine))
    coarse = np.abs(fft.ifft2(_halve(spectrum * bank.coarse)))
    layers = [_average(padded[:, np.newaxis], bank, 1), _average(fine, bank, 1), _average(coarse, bank, 2)]
    if order == 2:
        pairs = fft.fft2(fine)[:, :, np.newaxis] * bank.coarse
        second = np.abs(fft.ifft2(_halve(pairs)))
        layers.append(_average(second.reshape(len(images), -1, *second.shape[3:]), bank, 2))
    return np.concatenate(layers, axis=1)


def _halve(spectrum: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The spectrum of every second pixel: the four quarters fold onto each other."""
    *rest, height, width = spectrum.shape
    quarters = spectrum.reshape(*rest, 2, height // 2, 2, width // 2)
    folded: NDArray[np.complex64] = quarters.mean(axis=(-4, -2))
    return folded


def _average(images: _Images, bank: _Bank, resolution: int) -> _Images:
    """Blur with the Gaussian, keep every fourth pixel of the original grid, drop the margin."""
    rows, columns = bank.averages[resolution]
    blurred: _Images = np.matmul(np.matmul(rows, images), columns.T)
    return blurred


def _normalize(features: _Images, groups: int) -> _Images:
    grouped = features.reshape(len(features), groups, -1)
    centered = grouped - grouped.mean(axis=2, keepdims=True)
    variance = np.square(centered).mean(axis=2, keepdims=True)
    scaled: _Images = centered / np.sqrt(variance + np.float32(1e-5))
    return scaled.reshape(features.shape)


@functools.cache
def _filters(height: int, width: int) -> _Bank:
    angles = [np.pi * turn / _ANGLES for turn in range(_ANGLES)]
    fine, coarse = (
        np.stack([_morlet(height, width, scale, angle) for angle in angles]).astype(np.float32) for scale in (0, 1)
    )
    averages = {r: (_blur_rows(height, r), _blur_rows(width, r)) for r in (1, 2)}
    return _Bank(fine, coarse, averages)


def _morlet(height: int, width: int, scale: int, angle: float) -> _Filter:
    """The transfer function of an oriented wave under an elongated Gaussian, corrected to have mean zero; real."""
    blur, frequency = _BLUR * 2**scale, _FREQUENCY / 2**scale
    bell = _gabor(height, width, blur, 0.0, angle)
    wave = _gabor(height, width, blur, frequency, angle)
    transfer: _Filter = fft.fft2(wave - bell * (wave.sum() / bell.sum())).real
    return transfer


def _gabor(height: int, width: int, blur: float, frequency: float, angle: float) -> NDArray[np.complex128]:
    """A wave along `angle` under a Gaussian twice as long across, on the torus (summed over its copies)."""
    slant = 4 / _ANGLES
    rows = np.arange(-2 * height, 3 * height)[:, np.newaxis]
    columns = np.arange(-2 * width, 3 * width)[np.newaxis]
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    values = np.exp(-(along**2 + slant**2 * across**2) / (2 * blur**2) + 1j * frequency * along)
    on_torus: NDArray[np.complex128] = values.reshape(5, height, 5, width).sum(axis=(0, 2))
    return on_torus * (slant / (2 * np.pi * blur**2))


def _blur_rows(side: int, resolution: int) -> NDArray[np.float32]:
    """(side/4 - 2, side/resolution): each row the weights of one output pixel, a Gaussian on the circle, sum 1."""
    blur = 2 * _BLUR
    positions = np.arange(0, side, resolution)
    outputs = np.arange(_MARGIN, side - _MARGIN, 4)
    distances = positions[np.newaxis, :, np.newaxis] - outputs[:, np.newaxis, np.newaxis]
    turns = side * np.arange(-2, 3)
    weights = np.exp(-((distances + turns) ** 2) / (2 * blur**2)).sum(axis=2)
    averages: _Images = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return averages
