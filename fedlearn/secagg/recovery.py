"""Secrets from shares of which some may be wrong: a commitment tells when a set of shares was right."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.crypto.keystream import stream_entropy
from fedlearn.crypto.shamir import PRIME, check_factors, combine, decode, share_at, value_at

__all__ = ["Blame", "Recovery"]

_SETS: Final = 2_000  # of shares that are tried one after the other, where there are no more than so many


@dataclass(frozen=True, slots=True)
class Blame:
    """A share that does not fit. It proves neither that the dealer sent a wrong one nor that the holder changed it."""

    dealer: bytes
    holder: bytes


@dataclass(slots=True)
class Recovery:
    """Recovers secret after secret from the same responders; `points` is {holder: x}, `threshold` shares are needed.

    Guarantees:
        a secret is returned only if it fits its commitment;
        it is found if at most floor((n - threshold) / 2) of the n shares are wrong, and where all sets of `threshold`
            shares can be tried, if that many are right;
        then each wrong share is blamed wherever it stands, and no right one.
    """

    points: Mapping[bytes, int]
    threshold: int
    blames: list[Blame] = field(default_factory=list)
    _trusted: tuple[bytes, ...] = ()
    _liars: frozenset[bytes] = frozenset()
    _factors: dict[frozenset[bytes], list[int]] = field(default_factory=dict, repr=False)

    def secret(self, dealer: bytes, shares: Mapping[bytes, int], fits: Callable[[bytes], bool]) -> bytes | None:
        """The dealer's 32-byte secret that `fits` its commitment; None where the shares do not give it.

        `shares` is {holder: value}, one for each responder.
        """
        found = self._from(self._trusted or tuple(self.points)[: self.threshold], shares, fits)
        if found is not None and self._agree(frozenset(), shares):
            return found
        right = self._right(shares, fits)
        if right is None:
            return found  # by luck: who lied cannot be told
        wrong = frozenset(self.points) - right
        self.blames += [Blame(dealer, holder) for holder in shares if holder in wrong]
        self._trusted, self._liars = tuple(h for h in self.points if h in right)[: self.threshold], wrong
        return self._from(self._trusted, shares, fits)

    def _right(self, shares: Mapping[bytes, int], fits: Callable[[bytes], bool]) -> frozenset[bytes] | None:
        """Whose shares are right; None where that cannot be told."""
        others = frozenset(self.points) - self._liars
        few = 2 * len(self._liars) <= len(self.points) - self.threshold
        if self._liars and few and self._agree(self._liars, shares):  # the same ones lied once more
            known = {self.points[h]: shares[h] for h in itertools.islice(iter(sorted(others)), self.threshold)}
            right = others | {h for h in self._liars if share_at(self.points[h], known) == shares[h]}
            return right if self._from(tuple(right)[: self.threshold], shares, fits) is not None else None
        polynomial = decode({x: shares[holder] for holder, x in self.points.items()}, self.threshold)
        if polynomial is not None:
            right = frozenset(h for h, x in self.points.items() if value_at(polynomial, x) == shares[h])
            return right if self._from(tuple(right)[: self.threshold], shares, fits) is not None else None
        candidates = sorted(set(self._candidates(shares, fits)), key=len)
        # Two that fit agree at 0 too, so that only one is so near.
        certain = candidates and 2 * (len(self.points) - len(candidates[-1])) <= len(self.points) - self.threshold + 1
        return candidates[-1] if certain or len(candidates) == 1 else None

    def _candidates(self, shares: Mapping[bytes, int], fits: Callable[[bytes], bool]) -> Iterator[frozenset[bytes]]:
        """Who agrees with each polynomial through enough shares whose secret fits; none where they are too many."""
        if math.comb(len(self.points), self.threshold) > _SETS:
            return
        for holders in itertools.combinations(self.points, self.threshold):
            if self._from(holders, shares, fits) is not None:
                known = {self.points[holder]: shares[holder] for holder in holders}
                yield frozenset(h for h, x in self.points.items() if share_at(x, known) == shares[h])

    def _agree(self, without: frozenset[bytes], shares: Mapping[bytes, int]) -> bool:
        """Whether all shares but those of `without` lie on one polynomial."""
        holders = [holder for holder in self.points if holder not in without]
        if without not in self._factors:
            entropy = stream_entropy(os.urandom)
            self._factors[without] = check_factors([self.points[h] for h in holders], self.threshold, entropy)
        return sum(f * shares[h] for f, h in zip(self._factors[without], holders, strict=True)) % PRIME == 0

    def _from(
        self, holders: Sequence[bytes], shares: Mapping[bytes, int], fits: Callable[[bytes], bool]
    ) -> bytes | None:
        secret = combine({self.points[holder]: shares[holder] for holder in holders})
        return secret if secret is not None and fits(secret) else None
