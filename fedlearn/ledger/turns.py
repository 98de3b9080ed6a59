"""The members of common accounts: many clients of a simulation whose equal releases are one row.

Clients' records are disjoint, or a client is what is protected: so what a common account spent is what that member
spent that released most (parallel composition). Only who was ever booked is kept.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Turns"]

_Counts = defaultdict[tuple[str, str | bytes], Counter[int]]


@dataclass(slots=True)
class Turns:
    """Who each reservation of a common account is for, and how often each member was booked, or released."""

    members: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of each reservation that counts
    accounts: set[str] = field(default_factory=set)  # those that are common
    _booked: _Counts = field(default_factory=lambda: defaultdict(Counter))  # (account, event)
    _released: _Counts = field(default_factory=lambda: defaultdict(Counter))  # (account, session)

    def book(self, reservation: int, members: tuple[int, ...], *, account: str, event: bytes) -> int:
        """Take in who a reservation is for; how often the event counts now for the member for whom it counts most."""
        self.members[reservation] = members
        self.accounts.add(account)
        self._booked[account, event].update(members)
        return max(self._booked[account, event].values(), default=0)

    def unbook(self, reservation: int, *, account: str, event: bytes) -> int:
        """The reservation is void; as `book`."""
        counts = self._booked[account, event]
        for member in self.members.pop(reservation):
            counts[member] -= 1
        return max(counts.values(), default=0)

    def release(self, reservation: int, *, account: str, session: str) -> int:
        """The reservation is released; how often the member of it that released most in the session did."""
        self._released[account, session].update(self.members[reservation])
        return self.most_released(self.members[reservation], account=account, session=session)

    def most_booked(self, members: Sequence[int], *, account: str, event: bytes) -> int:
        """How often the event counts for the one of these members for whom it counts most."""
        counts = self._booked[account, event]
        return max((counts[member] for member in members), default=0)

    def most_released(self, members: Sequence[int], *, account: str, session: str) -> int:
        """How often the one of these members that released most in the session did."""
        counts = self._released[account, session]
        return max((counts[member] for member in members), default=0)
