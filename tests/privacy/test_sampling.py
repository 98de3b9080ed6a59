"""Record coins are secret, exact and Poisson. Each statistical test raises a false alarm once in a million runs."""

import ast
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fedlearn
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.errors import ConfigError
from fedlearn.privacy.sampling import poisson_sample

FALSE_ALARM = 1e-6
RECORDS, DRAWS, PROBABILITY = 150, 3000, Fraction(2, 7)
KNOWN_SAMPLE = [0, 5, 20, 21, 22, 23, 27, 28, 29, 33, 34, 35, 36, 37]

Sampler = Callable[[], np.ndarray]


def words(*values: int) -> Callable[[int], bytes]:
    """An entropy that gives these u64 once."""
    script = iter([np.array(values, dtype="<u8").tobytes()])

    def entropy(size: int) -> bytes:
        given = next(script)
        assert len(given) == size
        return given

    return entropy


def inclusion_p_value(sample: Sampler) -> float:
    """Two-sided p of the records' inclusion counts against Binomial(DRAWS, q)."""
    counts = np.bincount(np.concatenate([sample() for _ in range(DRAWS)]), minlength=RECORDS)
    q = float(PROBABILITY)
    statistic = ((counts - DRAWS * q) ** 2).sum() / (DRAWS * q * (1 - q))
    return 2 * min(stats.chi2.sf(statistic, RECORDS), stats.chi2.cdf(statistic, RECORDS))


def batch_size_p_value(sample: Sampler) -> float:
    """Two-sided p of the variance of the batch size against n q (1 - q)."""
    sizes = np.array([sample().size for _ in range(DRAWS)])
    q = float(PROBABILITY)
    statistic = ((sizes - RECORDS * q) ** 2).sum() / (RECORDS * q * (1 - q))
    return 2 * min(stats.chi2.sf(statistic, DRAWS), stats.chi2.cdf(statistic, DRAWS))


@pytest.fixture
def poisson() -> Sampler:
    entropy = stream_entropy()
    return lambda: poisson_sample(RECORDS, PROBABILITY, entropy)


def test_r02_inclusion_counts_are_binomial(poisson):
    """Chi-square with 150 degrees of freedom; false alarm 1e-6."""
    assert inclusion_p_value(poisson) > FALSE_ALARM


def test_r02_variance_of_the_batch_size_is_n_q_one_minus_q(poisson):
    """Chi-square with 3,000 degrees of freedom; false alarm 1e-6."""
    assert batch_size_p_value(poisson) > FALSE_ALARM


def test_r02_coins_of_two_records_are_independent(poisson):
    """Fisher's test on a 2 x 2 table; false alarm 1e-6."""
    taken = np.array([np.isin([3, 4], poisson()) for _ in range(DRAWS)])
    table = [[int((taken == [a, b]).all(axis=1).sum()) for b in (0, 1)] for a in (0, 1)]
    assert stats.fisher_exact(table).pvalue > FALSE_ALARM


def test_r02_batches_of_fixed_size_are_caught():
    generator = np.random.default_rng(1)
    size = round(RECORDS * PROBABILITY)
    assert batch_size_p_value(lambda: generator.permutation(RECORDS)[:size]) < 1e-100


def test_r02_shuffled_batches_are_caught():
    """One pass over shuffled records includes each exactly once: far too even for Binomial."""
    generator, queue = np.random.default_rng(1), []

    def shuffled() -> np.ndarray:
        if not queue:
            queue.extend(np.array_split(generator.permutation(RECORDS), 4))
        return queue.pop()

    counts_are_too_even = inclusion_p_value(shuffled)
    assert counts_are_too_even < 1e-20


def test_coin_is_exact_at_its_threshold():
    third = 0x5555_5555_5555_5555  # floor(2^64 / 3)
    assert poisson_sample(4, Fraction(1, 3), words(third - 1, third, 2**64 - 1, 0)).tolist() == [0, 3]


def test_coin_of_almost_one_and_of_almost_zero_is_exact():
    almost = Fraction(2**32 - 2, 2**32 - 1)
    edge = (2**64 * (2**32 - 2)) // (2**32 - 1)
    assert poisson_sample(3, almost, words(edge, edge - 1, 2**64 - 1)).tolist() == [1]
    assert poisson_sample(3, Fraction(1, 2**32 - 1), words(2**32, 2**32 + 1, 0)).tolist() == [0, 2]


def test_known_answer_with_injected_bytes():
    drawn = poisson_sample(40, Fraction(1, 4), stream_entropy(lambda size: bytes(range(size))))
    assert drawn.tolist() == KNOWN_SAMPLE
    assert drawn.dtype == np.int64


def test_probability_one_takes_every_record_and_draws_no_coin():
    def no_entropy(size: int) -> bytes:
        raise AssertionError("a coin was drawn")

    assert poisson_sample(5, Fraction(1), no_entropy).tolist() == [0, 1, 2, 3, 4]


def test_client_without_records_and_empty_batch_are_valid():
    assert poisson_sample(0, Fraction(1, 2), stream_entropy()).size == 0
    assert poisson_sample(3, Fraction(1, 2), words(2**64 - 1, 2**63, 2**63)).size == 0


@pytest.mark.parametrize("probability", [Fraction(0), Fraction(-1, 2), Fraction(3, 2)])
def test_probability_outside_its_range_is_refused(probability):
    with pytest.raises(ConfigError, match=r"sampling_probability is .* expected a fraction above 0 and at most 1"):
        poisson_sample(5, probability, stream_entropy())


def test_r03_two_samples_differ():
    """Equal with probability 2^-256 for 256 coins."""
    entropy = stream_entropy()
    first, second = (poisson_sample(256, Fraction(1, 2), entropy).tolist() for _ in range(2))
    assert first != second
    assert poisson_sample(256, Fraction(1, 2), stream_entropy()).tolist() not in (first, second)


ROOMS = sorted(p for room in ("privacy", "crypto") for p in (Path(fedlearn.__file__).parent / room).glob("**/*.py"))
SEEDED = {"random", "torch", "numpy.random", "opacus", "flwr", "jax"}


def seeded_generators(source: str) -> list[str]:
    """What a module imports or reaches of generators that a seed can repeat."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy"):
            names = [f"numpy.{node.attr}"]
        found += [name for name in names if any(name == bad or name.startswith(bad + ".") for bad in SEEDED)]
    return found


@pytest.mark.parametrize("module", ROOMS, ids=lambda path: path.name)
def test_r03_no_seeded_generator_is_reached(module):
    assert seeded_generators(module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "import numpy.random as r",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.normal()",
        "import torch\ntorch.randn(3)",
        "def f():\n    from random import gauss",
    ],
)
def test_r03_seeded_generator_is_caught(source):
    assert seeded_generators(source)
