"""The noise is the exact discrete Gaussian. Each statistical test raises a false alarm once in a million runs."""

import hashlib
import io
import itertools
import math
import struct
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedlearn.crypto.keystream import Entropy, stream_entropy
from fedlearn.errors import ConfigError
from fedlearn.privacy import discrete_gaussian as sampler
from fedlearn.privacy.discrete_gaussian import discrete_gaussian
from fedlearn.privacy.quantization import truncate

FALSE_ALARM = 1e-6
DRAWS = 300_000
LARGEST = 2**26 - 1
SIZES = [1, 2, 3, 64, 1000, 10**5, 2**24, LARGEST]
KNOWN = {  # the first five of 70,000 draws, and the hash of all
    1: ([-1, 0, -2, 1, 1], "58477f249a489a0b"),
    2: ([-2, -1, 3, 0, -1], "63b47f5607b4c347"),
    3: ([3, -2, 2, -2, -2], "9047022bfd18da39"),
    64: ([-1, 110, -45, -47, -48], "3789d8f47d47b0e7"),
    1000: ([709, 746, -124, -703, -776], "e30263393fed241b"),
    100000: ([73162, -70960, -174619, 75616, -12451], "7e0e6cb8ebb7fedf"),
    16777216: ([12274709, -11905267, -29296322, 12686342, -2089042], "2ed46f6b64735f21"),
    67108863: ([49098836, -47621070, -117185290, 50745369, -8356170], "32bf9321d68f1618"),
}


def repeatable() -> Entropy:
    return stream_entropy(lambda size: bytes(range(size)))


@pytest.fixture(scope="module", params=SIZES)
def sample(request: pytest.FixtureRequest) -> tuple[int, np.ndarray]:
    return request.param, discrete_gaussian(request.param, DRAWS, stream_entropy())


def two_sided(z: float) -> float:
    return 2 * float(stats.norm.sf(abs(z)))


def exact_cells(sigma: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper ends of about 100 cells (the last one open) and the exact probability of each."""
    if sigma < 50:
        support = np.arange(-12 * sigma, 12 * sigma + 1)
        mass = np.exp(-(support.astype(float) ** 2) / (2 * sigma**2))
        inner = support[np.abs(support) <= 3 * sigma]
        below = np.array([mass[support <= end].sum() for end in inner]) / mass.sum()
    else:  # the sum over integers is the normal integral up to exp(-2 pi^2 sigma^2), half a step to the right
        inner = np.unique(np.round(stats.norm.ppf(np.arange(1, 100) / 100) * sigma).astype(np.int64))
        below = stats.norm.cdf((inner + 0.5) / sigma)
    return inner, np.diff(below, prepend=0.0, append=1.0)


def test_draws_follow_the_exact_probabilities(sample):
    """Chi-square over about 100 cells; false alarm 1e-6 for each standard deviation."""
    sigma, noise = sample
    ends, mass = exact_cells(sigma)
    counts = np.bincount(np.searchsorted(ends, noise), minlength=mass.size)
    assert stats.chisquare(counts, mass * DRAWS).pvalue > FALSE_ALARM


def test_mean_variance_and_kurtosis_are_the_gaussian_ones(sample):
    """Three z-tests; false alarm 1e-6 each. The moments of sigma >= 1 are the normal ones up to 1e-5."""
    sigma, noise = sample
    unit = noise / sigma
    assert two_sided(unit.mean() * DRAWS**0.5) > FALSE_ALARM
    assert two_sided(((unit**2).mean() - 1) * (DRAWS / 2) ** 0.5) > FALSE_ALARM
    assert two_sided(((unit**4).mean() - 3) * (DRAWS / 96) ** 0.5) > FALSE_ALARM


def test_neighbors_are_independent(sample):
    """Correlation of lags 1, 2 and 7 of the values and of their squares; false alarm 1e-6 each."""
    sigma, noise = sample
    unit = noise / sigma
    for lag in (1, 2, 7):
        assert two_sided((unit[lag:] * unit[:-lag]).sum() / DRAWS**0.5) > FALSE_ALARM
        square = (unit**2 - 1) / 2**0.5
        assert two_sided((square[lag:] * square[:-lag]).sum() / DRAWS**0.5) > FALSE_ALARM


def test_noise_a_tenth_short_is_caught(sample):
    sigma, noise = sample
    unit = 0.9 * noise / sigma
    assert two_sided(((unit**2).mean() - 1) * (DRAWS / 2) ** 0.5) < 1e-50


@pytest.mark.parametrize("sigma", [1000, 2**24])
def test_r04_low_order_bits_are_uniform(sigma):
    """Chi-square over the low byte of noised minus noiseless, and of the noised itself; false alarm 1e-6 each."""
    vector = np.random.default_rng(0).normal(size=DRAWS)
    noiseless = truncate(vector, 1 << 16)
    noised = noiseless + discrete_gaussian(sigma, DRAWS, stream_entropy())
    assert noised.dtype == np.int64
    for released in (noised - noiseless, noised):
        assert stats.chisquare(np.bincount(released & 255, minlength=256)).pvalue > FALSE_ALARM


def test_r04_rounded_float32_noise_is_caught():
    """The low bits of a float32 Gaussian of this size are mostly zero: what this sampler exists to avoid."""
    floats = np.random.default_rng(0).normal(0, 2**30, DRAWS).astype(np.float32)
    assert stats.chisquare(np.bincount(floats.astype(np.int64) & 255, minlength=256)).pvalue < 1e-100


def test_r03_two_draws_differ():
    """Equal with probability below (1/160)^64 for 64 entries."""
    entropy = stream_entropy()
    first, second = discrete_gaussian(64, 64, entropy), discrete_gaussian(64, 64, entropy)
    assert (first != second).any()
    assert (discrete_gaussian(64, 64, stream_entropy()) != first).any()


def test_same_entropy_gives_the_same_draws():
    np.testing.assert_array_equal(
        discrete_gaussian(777, 5000, repeatable()), discrete_gaussian(777, 5000, repeatable())
    )


@pytest.mark.parametrize("sigma", SIZES)
def test_known_answers_with_injected_bytes(sigma):
    noise = discrete_gaussian(sigma, 70_000, repeatable())
    first, digest = KNOWN[sigma]
    assert noise[:5].tolist() == first
    assert hashlib.sha256(noise.astype("<i8").tobytes()).hexdigest()[:16] == digest


class Reference:
    """The sampler in Python's integers and fractions, reading the same words in the same order; slow."""

    def __init__(self, sigma: int, entropy: Entropy) -> None:
        self.sigma, self.entropy = sigma, entropy

    def words(self, count: int, bound: int) -> list[int]:
        """Uniform in [0, bound): a word from the largest multiple of `bound` on is drawn again."""
        step = 2**64 // bound
        drawn = list(struct.unpack(f"<{count}Q", self.entropy(8 * count)))
        while again := [i for i, word in enumerate(drawn) if word >= step * bound]:
            for i, word in zip(again, struct.unpack(f"<{len(again)}Q", self.entropy(8 * len(again))), strict=True):
                drawn[i] = word
        return [word // step for word in drawn]

    def coins_exp(self, gammas: list[Fraction], denominator: int, first: int = 1) -> list[bool]:
        """Heads with probability exp(-gamma); the words' bound is denominator * k."""
        stopped: dict[int, int] = {}
        alive = list(range(len(gammas)))
        k = first
        while alive:
            words = self.words(len(alive), denominator * k)
            heads = [Fraction(w, denominator * k) < gammas[i] / k for i, w in zip(alive, words, strict=True)]
            stopped |= {i: k for i, head in zip(alive, heads, strict=True) if not head}
            alive = [i for i, head in zip(alive, heads, strict=True) if head]
            k += 1
        return [stopped[i] % 2 == 1 for i in range(len(gammas))]

    def runs(self, count: int) -> list[int]:
        """Lengths of the first `count` runs of heads of exp(-1)."""
        coins: list[bool] = []
        while (missing := count - coins.count(False)) > 0:
            size = int(missing * 1.6) + 16
            coins += self.coins_exp([Fraction(1)] * size, 1, first=2)
        tails = [i for i, coin in enumerate(coins) if not coin][:count]
        return [b - a - 1 for a, b in itertools.pairwise([-1, *tails])]

    def laplace(self, candidates: int) -> Iterator[int]:
        uniform = [0] * candidates
        if self.sigma > 1:
            drawn = self.words(candidates, self.sigma)
            kept = self.coins_exp([Fraction(u, self.sigma) for u in drawn], self.sigma)
            uniform = [u for u, keep in zip(drawn, kept, strict=True) if keep]
        runs = self.runs(len(uniform))
        packed = self.entropy((len(uniform) + 7) // 8)
        for i, (u, v) in enumerate(zip(uniform, runs, strict=True)):
            negative = packed[i // 8] >> (7 - i % 8) & 1
            if v <= 64 and not (negative and u + v == 0):
                yield (-1 if negative else 1) * (u + self.sigma * v)

    def gaussian(self, candidates: int) -> list[int]:
        laplace = list(self.laplace(candidates))
        gammas = [Fraction((abs(y) - self.sigma) ** 2, 2 * self.sigma**2) for y in laplace]
        kept = self.coins_exp([g - math.floor(g) for g in gammas], 2 * self.sigma**2)
        far = [i for i, g in enumerate(gammas) if kept[i] and g >= 1]
        for i, run in zip(far, self.runs(len(far)), strict=True):
            kept[i] = run >= math.floor(gammas[i])
        return [y for y, keep in zip(laplace, kept, strict=True) if keep]

    def draw(self, dimension: int) -> list[int]:
        noise: list[int] = []
        while missing := dimension - len(noise):
            noise += self.gaussian(int(missing * 2.2) + 64)[:missing]
        return noise


@pytest.mark.parametrize("sigma", SIZES)
@pytest.mark.parametrize("dimension", [1, 700])
def test_uint64_arithmetic_gives_what_python_integers_give(sigma, dimension):
    expected = Reference(sigma, repeatable()).draw(dimension)
    assert discrete_gaussian(sigma, dimension, repeatable()).tolist() == expected


def test_no_numerator_or_denominator_passes_64_bits():
    farthest = 64 * LARGEST + LARGEST - 1 - LARGEST  # |Y| - sigma for V = 64 and the largest U
    assert farthest**2 < 2**64
    assert 2 * LARGEST**2 * (2**11 - 1) < 2**64
    assert int(np.uint64(farthest) * np.uint64(farthest)) == farthest**2


def run_of_heads(length: int) -> bytes:
    """Words that give one run of coins of exp(-1), drawn 17 at a time: heads are odd series, tails even ones."""
    full, rest = divmod(length, 17)
    stop = struct.pack("<Q", 2**64 - 2)  # no coin of 1/3 falls heads for it
    last = bytes(8 * rest) + struct.pack("<Q", 2**63) * (17 - rest) + stop * rest
    return (bytes(8 * 17) + stop * 17) * full + last


def farthest_candidate(first_run: int, second_run: int) -> Entropy:
    """The largest U, `first_run` as V, a negative sign, heads for the fraction of gamma, `second_run` for the rest."""
    double_variance = 2 * LARGEST**2
    uniform = struct.pack("<2Q", 2**64 // LARGEST * (LARGEST - 1), 2**64 // LARGEST * LARGEST - 1)
    fraction = struct.pack("<Q", 2**64 // double_variance * double_variance - 1)
    return io.BytesIO(uniform + run_of_heads(first_run) + b"\x80" + fraction + run_of_heads(second_run)).read


@pytest.mark.parametrize(("second_run", "kept"), [(2047, [-(65 * LARGEST - 1)]), (2046, [])])
def test_farthest_candidate_is_computed_without_overflow(second_run, kept):
    """V = 64 and sigma = 2^26 - 1: gamma is just below 2048, so that 2047 coins of exp(-1) must fall heads in a row."""
    assert sampler._gaussian_attempts(1, LARGEST, farthest_candidate(64, second_run)).tolist() == kept
    assert Reference(LARGEST, farthest_candidate(64, second_run)).gaussian(1) == kept


def test_candidate_that_would_overflow_is_dropped():
    """V = 65 would be kept with probability below e^-1984: dropping it unsquared changes nothing."""
    assert Fraction(64**2, 2) > 1984
    assert sampler._laplace_attempts(1, LARGEST, farthest_candidate(64, 0)).tolist() == [-(65 * LARGEST - 1)]
    assert sampler._laplace_attempts(1, LARGEST, farthest_candidate(65, 0)).size == 0


def test_word_beyond_the_largest_multiple_is_drawn_again():
    """A bare modulo would map the word 2^64 - 1 to 0 of 3, and give 0 more often than 2."""
    script = iter([struct.pack("<4Q", 2**64 - 1, 0, 2**64 - 2, 2**63), struct.pack("<Q", 2**64 - 1), bytes(8)])
    assert sampler._uniform_below(3, 4, lambda _: next(script)).tolist() == [0, 0, 2, 1]


def test_the_alternating_series_is_exp_of_minus_gamma():
    """Two-sided binomial tests at four values of gamma; false alarm 1e-6 each."""
    entropy, denominator = stream_entropy(), 2 * LARGEST**2
    for numerator in (0, denominator // 3, denominator // 2, denominator - 1):
        heads = sampler._coins_exp(np.full(DRAWS, numerator, dtype=np.uint64), denominator, entropy)
        chance = math.exp(-numerator / denominator)
        assert stats.binomtest(int(heads.sum()), DRAWS, min(chance, 1.0)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("dimension", [0, 1, 2**15 - 1, 2**15, 2**15 + 1, 3 * 2**15 + 5])
def test_every_dimension_is_filled(dimension):
    noise = discrete_gaussian(1000, dimension, stream_entropy())
    assert noise.shape == (dimension,)
    assert noise.dtype == np.int64
    assert dimension < 100 or 500 < np.abs(noise[-100:]).mean() < 1200  # 4.9 standard errors


@pytest.mark.parametrize("sigma", [0, -1, 2**26, 2**40])
def test_standard_deviation_outside_its_range_is_refused(sigma):
    with pytest.raises(ConfigError, match=r"noise_std is -?\d+ grid units; expected 1 to 2\^26 - 1"):
        discrete_gaussian(sigma, 5, stream_entropy())


def test_broken_entropy_ends_instead_of_hanging():
    with pytest.raises(AssertionError, match="entropy is broken"):
        discrete_gaussian(1000, 5, bytes)


@pytest.mark.slow
def test_a_million_draws_take_at_most_half_a_cpu_second():
    entropy = stream_entropy()
    for sigma in (1000, 10**5, 2**24):
        start = time.process_time()
        discrete_gaussian(sigma, 1_000_000, entropy)
        assert time.process_time() - start < 0.5
