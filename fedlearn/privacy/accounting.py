"""From events to epsilon. An event says what was released; epsilon is derived from events, by one accountant.

The accountant is dp-accounting's `RdpAccountant` with its default orders. Events persist as canonical bytes, for
dp-accounting does not serialize. Where records are sampled, the theorem speaks of the continuous Gaussian; ours is
discrete, so each event carries `eta`, the total variation between the two, and pays for it out of delta.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.bounded import read_json
from fedlearn.canonical import canonical_json
from fedlearn.errors import ConfigError
from fedlearn.host.quiet import quiet
from fedlearn.privacy.rdp_alone import load_parts_alone

__all__ = [
    "Event",
    "best_order",
    "best_order_of_budget",
    "best_orders_around",
    "delta_for_rdp",
    "epsilon_at_order",
    "epsilon_of",
    "estimate_epsilon",
    "eta_of",
    "gaussian_delta",
    "gaussian_epsilon",
]

load_parts_alone()

_Curve = NDArray[np.float64]  # one value an order, in the order of dp-accounting's DEFAULT_RDP_ORDERS

_UP = Context(prec=40, rounding=ROUND_CEILING)
_THREE_DIGITS = Context(prec=3, rounding=ROUND_CEILING)
_KEYS = {"count", "eta", "mechanism", "noise_multiplier", "sampling_probability"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One release: `count` Gaussian sums in a row, each on a Poisson sample of probability `sampling_probability`.

    `noise_multiplier_millionths` is z_booked * 10^6, an integer; `eta` is 0 where the probability is 1.
    """

    count: int
    eta: Decimal
    noise_multiplier_millionths: int
    sampling_probability: Fraction

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation over sensitivity of what is released."""
        return self.noise_multiplier_millionths / 10**6

    def as_dict(self) -> dict[str, object]:
        """The event as JSON has it; `from_dict` reads it back."""
        whole, millionths = divmod(self.noise_multiplier_millionths, 10**6)
        return {
            "count": self.count,
            "eta": f"{self.eta:.2e}" if self.eta else "0",
            "mechanism": "gaussian",
            "noise_multiplier": f"{whole}.{millionths:06d}",
            "sampling_probability": str(self.sampling_probability),
        }

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        return canonical_json(self.as_dict())

    @classmethod
    def from_bytes(cls, body: bytes) -> "Event":
        """The event in canonical bytes.

        Raises:
            ConfigError: unknown keys or mechanism, or not the canonical form: what is not understood is not counted.
        """
        try:
            values = read_json(body, what="an event")
        except ConfigError:
            raise ConfigError(f"an event is {body[:80]!r}; expected canonical JSON") from None
        event = cls.from_dict(values)
        if event.to_bytes() != body:
            raise ConfigError(f"an event is {body[:200]!r}; expected its canonical form {event.to_bytes()!r}")
        return event

    @classmethod
    def from_dict(cls, values: Any) -> "Event":
        """The event that `as_dict` describes.

        Raises:
            ConfigError: as `from_bytes`.
        """
        if not isinstance(values, dict) or set(values) != _KEYS or values["mechanism"] != "gaussian":
            raise ConfigError(f'an event is {values!r}; expected the keys {sorted(_KEYS)} with mechanism "gaussian"')
        try:
            event = cls(
                count=values["count"],
                eta=Decimal(values["eta"]),
                noise_multiplier_millionths=int(Decimal(values["noise_multiplier"]).scaleb(6)),
                sampling_probability=Fraction(values["sampling_probability"]),
            )
        except (InvalidOperation, ValueError, TypeError, ZeroDivisionError, OverflowError):
            raise ConfigError(f"an event is {values!r}; a value of it is not a number") from None
        if event.as_dict() != values or not event._is_in_range():
            raise ConfigError(f"an event is {values!r}; expected its canonical form, every value in its range")
        return event

    def _is_in_range(self) -> bool:
        within = type(self.count) is int and self.count >= 1 and 0 < self.sampling_probability <= 1
        # A missing eta would count a discrete sum as if it were continuous.
        return within and self.noise_multiplier_millionths > 0 and (self.eta > 0) == (self.sampling_probability < 1)


def eta_of(sampling_probability: Fraction, *, dimension: int, noise_variance: int) -> Decimal:
    """Total variation between our noise and the rounded Gaussian of variance `noise_variance` - 1/12, rounded up.

    8.6e-4 * sqrt(dimension) / variance^2 (docs/specification/privacy.md 2.3), three digits; 0 where every record is
    taken, for there the discrete Gaussian has its own exact bound. `noise_variance` in grid units squared.
    """
    if sampling_probability == 1:
        return Decimal(0)
    root = Decimal(dimension).sqrt(_UP)
    exact = _UP.divide(_UP.multiply(Decimal("8.6e-4"), root), Decimal(noise_variance) ** 2)
    return _THREE_DIGITS.plus(exact)


def epsilon_of(
    events: Sequence[tuple[Event, int]],
    *,
    delta: float,
    epsilon_ceiling: float,
    orders: tuple[float, ...] | None = None,
) -> float:
    """Epsilon at `delta` of events, each released so many times, at the best order; infinite if delta does not suffice.

    Delta is first reduced by (1 + e^epsilon_ceiling) * eta for every sum (docs/specification/privacy.md 7.4).
    `epsilon_ceiling` is what is calibrated or checked against: the target of a run, the budget of a ledger. Fewer
    `orders` than the default ones are quicker and never give less.

    Guarantees: equal to dp-accounting's `RdpAccountant` on the composed events at the reduced delta.
    """
    return _best(events, delta=delta, epsilon_ceiling=epsilon_ceiling, orders=orders or _orders())[0]


def best_order(events: Sequence[tuple[Event, int]], *, delta: float, epsilon_ceiling: float) -> float:
    """The default order at which `epsilon_of` is reached."""
    return _best(events, delta=delta, epsilon_ceiling=epsilon_ceiling, orders=_orders())[1]


def best_orders_around(
    events: Sequence[tuple[Event, int]], *, delta: float, epsilon_ceiling: float
) -> tuple[float, ...]:
    """The default order at which `epsilon_of` is reached, and its four neighbors on each side."""
    position = _position(best_order(events, delta=delta, epsilon_ceiling=epsilon_ceiling))
    return _orders()[max(0, position - 4) : position + 5]


def epsilon_at_order(
    events: Sequence[tuple[Event, int]], *, delta: float, epsilon_ceiling: float, order: float
) -> float:
    """Epsilon at one order that was fixed before the first release: what a ledger may add up across adaptive runs.

    The published filter (Feldman and Zrnic, arXiv:2008.11193) is for one order; taking the best afterwards is not
    covered by it.
    """
    left = delta_for_rdp(events, delta=delta, epsilon_ceiling=epsilon_ceiling)
    rdp = _composed(events, _orders())[_position(order)]
    return _convert([order], [rdp], left)[0]


def best_order_of_budget(max_epsilon: float, max_delta: float) -> float:
    """The best order for the one Gaussian release that spends exactly (`max_epsilon`, `max_delta`)."""
    orders = np.asarray(_orders())

    def spends(noise_multiplier: float) -> tuple[float, float]:
        return _convert(orders, orders / (2 * noise_multiplier**2), max_delta)

    low, high = 1e-3, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spends(middle)[0] > max_epsilon else (low, middle)
    return spends(high)[1]


def delta_for_rdp(events: Sequence[tuple[Event, int]], *, delta: float, epsilon_ceiling: float) -> float:
    """What is left of `delta` once every sum has paid (1 + e^epsilon_ceiling) * eta; at or below 0 nothing is left."""
    total = sum((event.eta * event.count * times for event, times in events), Decimal(0))
    if not total:
        return delta
    return delta - (1 + math.exp(min(epsilon_ceiling, 700.0))) * float(total)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The exact epsilon of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530): 3.8 where RDP says 4.2."""
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise_multiplier, delta))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The exact delta at `epsilon` of Gaussian releases of `mu` together (mu-GDP): Dong, Roth and Su, arXiv:1905.02383.

    Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu), in doubles; below 1e-300 it may be 0.
    """

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return below(mu / 2 - epsilon / mu) - math.exp(min(epsilon, 700.0)) * below(-mu / 2 - epsilon / mu)


def estimate_epsilon(events: Sequence[tuple[Event, int]], *, delta: float, relation: str) -> float:
    """A tighter figure for information: exact for unsampled sums, else from privacy loss distributions.

    Never booked, never a bound: the coarse grid of 1e-3 is chosen for speed.
    """
    if all(event.sampling_probability == 1 for event, _ in events):
        precision = sum(event.count * times / event.noise_multiplier**2 for event, times in events)
        return gaussian_epsilon(1 / math.sqrt(precision), delta) if precision else 0.0
    return _pld_epsilon(tuple(events), delta, relation)


@lru_cache(maxsize=64)
def _pld_epsilon(events: tuple[tuple[Event, int], ...], delta: float, relation: str) -> float:
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.privacy_accountant import NeighboringRelation

    accountant = PLDAccountant(NeighboringRelation[relation], value_discretization_interval=1e-3)
    for event, times in events:
        accountant.compose(_dp_event(event), event.count * times)
    return float(accountant.get_epsilon(delta))


def _best(
    events: Sequence[tuple[Event, int]], *, delta: float, epsilon_ceiling: float, orders: tuple[float, ...]
) -> tuple[float, float]:
    left = delta_for_rdp(events, delta=delta, epsilon_ceiling=epsilon_ceiling)
    return _convert(orders, _composed(events, orders), left)


def _convert(orders: Any, rdp: Any, delta: float) -> tuple[float, float]:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    if delta <= 0:
        return math.inf, float(orders[0])
    epsilon, order = compute_epsilon(orders, rdp, delta)
    return float(epsilon), float(order)


def _composed(events: Sequence[tuple[Event, int]], orders: tuple[float, ...]) -> _Curve:
    curve = np.zeros(len(orders))
    for event, times in events:
        if times:
            sums = event.count * times
            curve += sums * _rdp_of_sum(event.noise_multiplier_millionths, event.sampling_probability, orders)
    return curve


@lru_cache(maxsize=1024)
def _rdp_of_sum(millionths: int, probability: Fraction, orders: tuple[float, ...]) -> _Curve:
    """RDP of one Gaussian sum on a Poisson sample, at `orders`: 0.3 ms unsampled, up to 0.2 s sampled, then cached."""
    from dp_accounting.rdp import RdpAccountant

    event = Event(count=1, eta=Decimal(0), noise_multiplier_millionths=millionths, sampling_probability=probability)
    with quiet("absl"):  # it warns for each order that it leaves out at q < 1; leaving one out is safe
        curve: _Curve = RdpAccountant(orders).compose(_dp_event(event)).rdp
    curve.setflags(write=False)
    return curve


def _dp_event(event: Event) -> Any:
    """One sum of `event` in dp-accounting's grammar."""
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent

    gaussian = GaussianDpEvent(event.noise_multiplier)
    if event.sampling_probability == 1:
        return gaussian
    return PoissonSampledDpEvent(float(event.sampling_probability), gaussian)


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    return tuple(float(order) for order in DEFAULT_RDP_ORDERS)


def _position(order: float) -> int:
    try:
        return _orders().index(order)
    except ValueError:
        raise ConfigError(f"the order is {order}; expected one of dp-accounting's default orders") from None
