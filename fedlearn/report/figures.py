"""Numbers as the page prints them. What bounds a loss is rounded up, never down."""

import math
from decimal import ROUND_CEILING, Decimal

from fedlearn.privacy.guarantee import rounded_up

__all__ = ["delta_text", "epsilon_text", "odds_text", "percent", "plain", "three_digits_up"]


def epsilon_text(epsilon: float) -> str:
    """Epsilon rounded up to 4 decimals, without trailing zeros.

    Guarantees: never below `epsilon`.
    """
    return f"{Decimal(repr(rounded_up(epsilon, 4))).normalize():f}"


def delta_text(delta: float) -> str:
    """Delta with all its digits: 1e-05 -> "1e-5"."""
    return plain(delta)


def odds_text(epsilon: float) -> str:
    """e^epsilon, by how much odds can change, rounded up to three digits: 3 -> "20.1"."""
    return f"e^{epsilon_text(epsilon)}" if epsilon > 20 else f"{float(three_digits_up(math.exp(epsilon))):,g}"


def three_digits_up(value: float) -> str:
    """A positive number rounded up to three digits: 0.00021086 -> "2.11e-4"."""
    shown = Decimal(value)
    return plain(float(shown.quantize(Decimal(1).scaleb(shown.adjusted() - 2), rounding=ROUND_CEILING)))


def percent(share: float | None) -> str:
    """0.9433 -> "94.3 %"; a score that is absent is a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def plain(value: object) -> str:
    """A value of a configuration: shortest form of numbers, thousands grouped, lists and tables written out."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return _plain_float(value)
        case dict():
            return ", ".join(f"{key} = {plain(item)}" for key, item in value.items()) or "–"
        case list() | tuple():
            return "[" + ", ".join(plain(item) for item in value) + "]"
        case _:
            return str(value)


def _plain_float(value: float) -> str:
    mantissa, e, exponent = repr(value).partition("e")
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{int(exponent)}" if e else mantissa
