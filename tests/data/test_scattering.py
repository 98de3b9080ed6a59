"""Scattering features against sums written out in space, and each line of their guarantee."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.data.scattering import scatter, scattering_shape
from fedlearn.errors import ConfigError


def images(count: int, side: int = 16, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 1, side, side)).astype(np.float32)


def features_of(batch: NDArray[np.float32], order: int) -> NDArray[np.float32]:
    out = np.empty((len(batch), *scattering_shape(batch.shape[1:], order)), dtype=np.float32)
    scatter(batch, order=order, out=out)
    return out


def on_circle(side: int, values: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Sum a filter given on offsets -2*side..2*side-1 in both directions over the torus."""
    return values.reshape(4, side, 4, side).sum(axis=(0, 2))


def wavelet(side: int, scale: int, turn: int) -> NDArray[np.complex128]:
    """The Morlet wavelet of kymatio's definition: xi = 3 pi / 4 / 2^j, sigma = .8 2^j, slant = 1/2, zero mean."""
    angle, sigma, xi = np.pi * turn / 8, 0.8 * 2**scale, 3 * np.pi / 4 / 2**scale
    rows, columns = np.meshgrid(np.arange(-2 * side, 2 * side), np.arange(-2 * side, 2 * side), indexing="ij")
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    bell = np.exp(-(along**2 + across**2 / 4) / (2 * sigma**2)) / (4 * np.pi * sigma**2)
    wave = bell * np.exp(1j * xi * along)
    return on_circle(side, wave - bell * wave.sum() / bell.sum())


def average(side: int) -> NDArray[np.complex128]:
    rows, columns = np.meshgrid(np.arange(-2 * side, 2 * side), np.arange(-2 * side, 2 * side), indexing="ij")
    return on_circle(side, np.exp(-(rows**2 + columns**2) / (2 * 1.6**2)) / (2 * np.pi * 1.6**2))


def convolve(image: NDArray[np.float64], kernel: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Circular convolution, summed in space."""
    side = len(image)
    shifts = [np.roll(image, (i, j), axis=(0, 1)) * kernel[i, j] for i in range(side) for j in range(side)]
    return np.sum(shifts, axis=0)


def blurred(modulus: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Keep every `step`-th pixel, blur, and keep every fourth of the original ones inside the margin."""
    kept = np.zeros_like(modulus)
    kept[::step, ::step] = modulus[::step, ::step] * step**2
    return convolve(kept, average(24)).real[4:-4:4, 4:-4:4]


def normalized(group: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    centered = np.stack(group) - np.mean(group)
    return centered / np.sqrt((centered**2).mean() + 1e-5)


@pytest.mark.parametrize(("scale", "turn"), [(0, 0), (0, 3), (1, 0), (1, 5)])
def test_a_first_order_channel_is_the_blurred_modulus_of_its_wavelet(scale: int, turn: int) -> None:
    image = images(1)
    padded = np.pad(image[0, 0].astype(np.float64), 4, mode="reflect")
    modulus = np.abs(convolve(padded, wavelet(24, scale, turn)))
    expected = normalized([blurred(modulus, 2**scale)])
    np.testing.assert_allclose(features_of(image, 1)[0, [1 + 8 * scale + turn]], expected, atol=1e-4)


def test_a_second_order_group_is_the_blurred_modulus_of_wavelets_of_a_modulus() -> None:
    """Channels 18 to 20, a group of three: angle 0 at scale 0, then angles 1 to 3 at scale 1."""
    image = images(1)
    padded = np.pad(image[0, 0].astype(np.float64), 4, mode="reflect")
    modulus = np.abs(convolve(padded, wavelet(24, 0, 0)))
    expected = normalized([blurred(np.abs(convolve(modulus, wavelet(24, 1, turn))), 2) for turn in (1, 2, 3)])
    np.testing.assert_allclose(features_of(image, 2)[0, 18:21], expected, atol=1e-3)


@pytest.mark.parametrize(("order", "channels"), [(1, 17), (2, 81)])
def test_fashion_mnist_gives_833_and_3969_features(order: int, channels: int) -> None:
    assert scattering_shape((1, 28, 28), order) == (channels, 7, 7)
    assert features_of(images(2, side=28), order).shape == (2, channels, 7, 7)


@pytest.mark.parametrize("order", [1, 2])
def test_a_records_features_do_not_depend_on_the_others(order: int) -> None:
    batch = images(140)
    alone = np.concatenate([features_of(batch[i : i + 1], order) for i in (0, 77, 139)])
    np.testing.assert_allclose(features_of(batch, order)[[0, 77, 139]], alone, atol=1e-5)
    batch[1:77] = 1e6
    np.testing.assert_allclose(features_of(batch, order)[[0, 77, 139]], alone, atol=1e-5)


@pytest.mark.parametrize(("order", "groups"), [(1, 17), (2, 27)])
def test_each_group_has_mean_zero_and_variance_one(order: int, groups: int) -> None:
    grouped = features_of(images(5) * 50, order).reshape(5, groups, -1)
    np.testing.assert_allclose(grouped.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(grouped.var(axis=2), 1, atol=0.01)


@pytest.mark.parametrize("order", [1, 2])
def test_a_constant_image_has_finite_features(order: int) -> None:
    features = features_of(np.full((1, 1, 16, 16), 0.7, dtype=np.float32), order)
    assert np.isfinite(features).all()
    assert np.abs(features[0, 3:]).max() < 0.01


def test_second_order_begins_with_first_order_before_normalization() -> None:
    """The average is alone in its group of order 1 only, so it is the wavelets' channels that can be compared."""
    first, second = features_of(images(1), 1)[0], features_of(images(1), 2)[0]
    for channel in range(17):
        assert np.corrcoef(first[channel].ravel(), second[channel].ravel())[0, 1] > 0.999


def test_progress_ends_with_all_records() -> None:
    calls: list[tuple[int, int]] = []
    batch = images(300)
    out = np.empty((300, 17, 4, 4), dtype=np.float32)
    scatter(batch, order=1, out=out, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (300, 300)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.parametrize("shape", [(3, 28, 28), (28, 28), (1, 30, 28), (1, 4, 4), (13,)])
def test_records_that_are_no_gray_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="sides divisible by 4"):
        scattering_shape(shape, 1)


def test_another_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="order is 3; expected 1 or 2"):
        scattering_shape((1, 28, 28), 3)
