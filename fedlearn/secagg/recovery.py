"""Secrets from shares of which some may be wrong: a commitment tells when a set of shares was right."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fedlearn.crypto.shamir import combine, share_at

__all__ = ["Blame", "Recovery"]

_TRIES: Final = 400  # enough for three liars among the 80 responders of a cohort of 100


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
        a set of holders that worked is tried first for the next secret.
    """

    points: Mapping[bytes, int]
    threshold: int
    blames: list[Blame] = field(default_factory=list)
    _trusted: tuple[bytes, ...] | None = None

    def secret(self, dealer: bytes, shares: Mapping[bytes, int], fits: Callable[[bytes], bool]) -> bytes | None:
        """The dealer's 32-byte secret that `fits` its commitment; None where no set of shares tried gives it.

        `shares` is {holder: value}, one for each responder.
        """
        first = self._trusted or tuple(self.points)[: self.threshold]
        found = self._from(first, shares, fits)
        if found is not None:
            return found
        random = secrets.SystemRandom()
        for _ in range(_TRIES):
            holders = tuple(random.sample(list(self.points), self.threshold))
            found = self._from(holders, shares, fits)
            if found is not None:
                self._trusted = holders
                self._blame(dealer, shares)
                return found
        return None

    def _from(
        self, holders: tuple[bytes, ...], shares: Mapping[bytes, int], fits: Callable[[bytes], bool]
    ) -> bytes | None:
        secret = combine({self.points[holder]: shares[holder] for holder in holders})
        return secret if secret is not None and fits(secret) else None

    def _blame(self, dealer: bytes, shares: Mapping[bytes, int]) -> None:
        assert self._trusted is not None
        good = {self.points[holder]: shares[holder] for holder in self._trusted}
        wrong = [holder for holder in shares if share_at(self.points[holder], good) != shares[holder]]
        self.blames += [Blame(dealer, holder) for holder in wrong]
