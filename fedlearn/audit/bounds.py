"""From what an attacker saw to a lower bound on epsilon that holds with a stated confidence.

Half of the samples chooses the attack, the other half bounds its error rates (Clopper and Pearson 1934), and the pair
of rates becomes a mu of Gaussian differential privacy, the one whose trade-off curve passes through it (Nasr et al.
2023, arXiv:2302.07956). A bound says: epsilon is at least so large, or something rarer than
1 - confidence has happened.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.privacy.accounting import gaussian_epsilon

__all__ = ["Seen", "at_least", "at_most", "epsilon_lower"]

Values = NDArray[np.float64]

# A thing that is known is used only where it tells this share of the variance: less than chance ever gives.
_TELLING = 0.05
_CANDIDATES = 49


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one side: `statistic` (n,), and beside it `known` (n, k), which no unit under attack moves.

    `group` (n,) are small integers: samples whose noise may have one kind of flaw in common.
    """

    statistic: Values
    known: Values
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.statistic)

    def half(self, second: bool) -> "Seen":
        """The first or the second half, in the order in which they were seen."""
        middle = len(self) // 2
        part = slice(middle, None) if second else slice(middle)
        return Seen(self.statistic[part], self.known[part], self.group[part])

    @classmethod
    def of(cls, statistic: Values) -> "Seen":
        """Samples beside which nothing is known."""
        return cls(statistic, np.zeros((len(statistic), 0)), np.zeros(len(statistic), dtype=np.int64))


def epsilon_lower(present: Seen, absent: Seen, *, delta: float, confidence: float) -> float:
    """The epsilon at `delta` that these samples prove, with and without the unit under attack; 0 if they prove none.

    What is known is subtracted first where the first half shows that it predicts the noise: then the noise was not
    fresh, or not its owner's alone.

    Guarantees:
        for independent samples of a mechanism that is mu-GDP, the result passes the epsilon of mu with probability at
        most 1 - `confidence`.
    """
    factors = _prediction(absent.half(second=False))
    chosen = _choose(
        _unpredicted(present.half(second=False), factors),
        _unpredicted(absent.half(second=False), factors),
        failure=1 - confidence,
    )
    mu = _mu(
        _unpredicted(present.half(second=True), factors),
        _unpredicted(absent.half(second=True), factors),
        chosen,
        failure=1 - confidence,
    )
    return gaussian_epsilon(1 / mu, delta) if mu > 0 else 0.0


def at_most(events: int, trials: int, *, failure: float) -> float:
    """Clopper-Pearson: the largest rate that still explains so few events of `trials`, wrong with `failure`."""
    from scipy.stats import beta

    return float(beta.ppf(1 - failure, events + 1, trials - events)) if events < trials else 1.0


def at_least(events: int, trials: int, *, failure: float) -> float:
    """Clopper-Pearson: the smallest rate that still explains so many events of `trials`, wrong with `failure`."""
    return 1 - at_most(trials - events, trials, failure=failure)


def _prediction(absent: Seen) -> dict[int, Values]:
    """For each group, the factors with which what is known tells the noise; zeros where it tells nothing."""
    factors = {}
    for group in np.unique(absent.group):
        here = absent.group == group
        known, noise = absent.known[here], absent.statistic[here]
        telling = np.zeros(known.shape[1])
        if known.shape[1] and len(noise) > known.shape[1]:
            fitted = np.linalg.lstsq(known, noise, rcond=None)[0]
            left = noise - known @ fitted
            if float(left @ left) < (1 - _TELLING) * float(noise @ noise):
                telling = fitted
        factors[int(group)] = telling
    return factors


def _unpredicted(seen: Seen, factors: dict[int, Values]) -> Values:
    left = seen.statistic.copy()
    for group, factor in factors.items():
        here = seen.group == group
        left[here] -= seen.known[here] @ factor
    return left


def _choose(present: Values, absent: Values, *, failure: float) -> float:
    """The threshold that proves most on these samples, by the bound that it is for: a laxer one favors rare events."""
    candidates = np.quantile(np.concatenate([present, absent]), np.linspace(0.02, 0.98, _CANDIDATES))
    candidates = np.append(candidates, (np.median(present) + np.median(absent)) / 2)
    mus = [_mu(present, absent, float(threshold), failure=failure) for threshold in candidates]
    return float(candidates[int(np.argmax(mus))])


def _mu(present: Values, absent: Values, threshold: float, *, failure: float) -> float:
    """The mu that is proven by guessing "present" above `threshold`; half of `failure` for each kind of error."""
    from scipy.stats import norm

    false_positives = at_most(int((absent > threshold).sum()), len(absent), failure=failure / 2)
    false_negatives = at_most(int((present <= threshold).sum()), len(present), failure=failure / 2)
    return float(norm.ppf(1 - false_positives) - norm.ppf(false_negatives))
