"""What several releases of one federation must look like, each as a test with an exact tail.

Noise is (releases, d) in units of the booked standard deviation, and so independent standard normal entries; its
discreteness is below what these tests resolve. Pairs are disjoint where they are pooled: given one of each pair, the
sum of products is exactly normal. A test asks for a tail of `failure` divided by the number of places it looks at.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Check", "coin_checks", "noise_checks", "reach_check"]

Values = NDArray[np.float64]

_LAGS = 64
_MOST_SQUARED = 2_048  # parameters of which all pairs are compared


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the releases; an honest system fails it with at most `false_alarm_rate`."""

    name: str
    passed: bool
    found: str
    false_alarm_rate: float

    def as_dict(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def reach_check(moved: Values, noise: float, directions: int, *, failure: float) -> Check:
    """Whether canaries moved their releases by at most their bound; `moved` (k,) are norms over `directions`.

    Both `moved` and `noise`, the standard deviation along a direction, are in units of the bound.
    """
    from scipy.stats import chi2

    allowed = 1 + noise * float(np.sqrt(chi2.isf(failure / len(moved), directions)))
    found = f"a canary moves a release by {moved.max():.3f} of the booked bound; at most {allowed:.3f} is its noise's"
    return Check("reach", bool(moved.max() <= allowed), found, failure)


def noise_checks(noise: Values, *, failure: float) -> list[Check]:
    """Size of the noise over all, by release and by entry; likeness of releases, of entries, of neighbors."""
    each = failure / 5
    return [
        _size(noise, failure=each),
        _bare(noise, failure=each),
        _alike("releases", noise, failure=each),
        _neighbors("reuse", noise, failure=each),
        _neighbors("entries", np.ascontiguousarray(noise.T), failure=each, pairs=True),
    ]


def coin_checks(taken: Values, copies: NDArray[np.int64], blur: float, *, failure: float) -> list[Check]:
    """Of secret coins of 1/2: how many of the `copies` (records,) were `taken` (rounds, records), seen with a `blur`.

    `blur` is the standard deviation of the noise in any direction of a row. Around its mean, a count of n coins has
    tails below a normal one's of variance n / 4 (Hoeffding), so a sum of products, given one factor of each, too.
    """
    each = failure / 3
    deviation = (taken - copies / 2) / np.sqrt(copies / 4 + blur**2)
    mean = abs(float(deviation.sum())) / np.sqrt(deviation.size)
    biased = 2 * np.exp(-(mean**2) / 2) < each
    least = [
        (2 * float(np.exp(-(score**2) / 2)) * _tests(rows), lag, name, score)
        for name, rows in (("rounds", deviation), ("records", np.ascontiguousarray(deviation.T)))
        for lag, score in _scores(rows)
    ]
    tail, lag, name, score = min(least)
    share = float(taken.mean() / copies.mean())
    told = f"coins of {name} {lag} apart fall alike by {score:.1f} standard deviations"
    spread = float((deviation**2).sum())
    # E exp(x^2 / 4) <= sqrt 2 for tails below a normal one's of variance 1; larger spreads are coins thrown together.
    together = np.exp(min(0.0, -spread / 4 + deviation.size * np.log(2) / 2)) < each
    return [
        Check("coins", bool(not biased), f"{share:.3f} of the records were taken by coins of 1/2", each),
        Check("coins-repeat", bool(tail >= each), told, each),
        Check("coins-apart", bool(not together), f"counts spread by {spread / deviation.size:.2f} of a coin's", each),
    ]


def _tests(rows: Values) -> int:
    """Of both ways of looking, twice the larger number of distances."""
    return 2 * min(_LAGS, len(rows) - 1)


def _size(noise: Values, *, failure: float) -> Check:
    """All releases together, neither smaller nor larger: equal shares of several clients add up to more."""
    from scipy.stats import chi2

    squares = float((noise**2).sum())
    low, high = chi2.cdf(squares, noise.size), chi2.sf(squares, noise.size)
    found = f"noise is {np.sqrt(squares / noise.size):.3f} of what is booked"
    return Check("noise", bool(2 * min(low, high) >= failure), found, failure)


def _bare(noise: Values, *, failure: float) -> Check:
    """Each release, and each entry over all releases: whether one has too little noise."""
    from scipy.stats import chi2

    lowest = []
    for axis, name in ((1, "release"), (0, "entry")):
        squares = (noise**2).sum(axis=axis)
        place, of = int(squares.argmin()), noise.shape[axis]
        tail = float(chi2.cdf(squares[place], of)) * len(squares)
        lowest.append((tail, f"the least noise of one {name} is {np.sqrt(squares[place] / of):.3f} of what is booked"))
    tail, found = min(lowest)
    return Check("bare", bool(tail >= failure / 2), found, failure)


def _alike(name: str, rows: Values, *, failure: float) -> Check:
    """Whether two rows go the same way, whichever: the square of their cosine has a Beta distribution."""
    from scipy.stats import beta

    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.abs(np.triu((rows / np.maximum(lengths, 1e-300)) @ (rows / np.maximum(lengths, 1e-300)).T, 1))
    first, second = np.unravel_index(int(cosines.argmax()), cosines.shape)
    largest, pairs = min(1.0, float(cosines[first, second])), len(rows) * (len(rows) - 1) // 2
    tail = float(beta.sf(largest**2, 0.5, (rows.shape[1] - 1) / 2)) * pairs
    found = f"noise of {name} {first} and {second} has a cosine of {largest:.3f}"
    return Check(name, bool(tail >= failure), found, failure)


def _neighbors(name: str, rows: Values, *, failure: float, pairs: bool = False) -> Check:
    """Whether rows at one distance go the same way, all of them together; with `pairs` any two of a few as well."""
    from scipy.stats import norm

    each = failure / 2 if pairs else failure
    scores = list(_scores(rows))
    lag, score = max(scores, key=lambda one: abs(one[1]))
    passed = 2 * float(norm.sf(abs(score))) * len(scores) >= each
    found = f"at a distance of {lag} noise goes the same way by {score:.1f} standard deviations"
    if pairs and len(rows) <= _MOST_SQUARED:
        both = _alike(name, rows, failure=each)
        if not both.passed:
            return Check(name, False, both.found, failure)
    return Check(name, passed, found, failure)


def _scores(rows: Values) -> Iterator[tuple[int, float]]:
    for lag in range(1, min(_LAGS, len(rows) - 1) + 1):
        first = np.flatnonzero(np.arange(len(rows) - lag) % (2 * lag) < lag)
        second = rows[first + lag]
        yield lag, float((rows[first] * second).sum() / max(float(np.linalg.norm(second)), 1e-300))
