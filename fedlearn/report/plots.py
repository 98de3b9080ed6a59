"""Curves over rounds as geometry; the template draws them as SVG in the page's own colors and type.

No plotting library: a curve here is one line, a few ticks and a label, and drawn this way it follows the reader's
theme, is read aloud by a screen reader, and has the same bytes on every machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Curve", "draw_curve"]

WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 22, 34
_MOST_MARKERS = 60


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in SVG units, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Marker:
    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One line over rounds in a box of WIDTH x HEIGHT units, y growing downward."""

    title: str
    note: str
    description: str
    path: str
    area: str
    markers: tuple[Marker, ...]
    last: Marker
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: Tick | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM

    @property
    def last_text_y(self) -> float:
        """Above the last point, or below it where the line comes down from above or the limit is near."""
        above = self.last.y - 9
        crowded = self.limit is not None and abs(self.limit.at - above) < 16
        return self.last.y + 18 if crowded else above


def draw_curve(
    title: str,
    points: Sequence[tuple[int, float | None]],
    *,
    note: str,
    text: Callable[[float], str],
    limit: float | None = None,
    from_zero: bool = False,
    highest: float = math.inf,
) -> Curve | None:
    """A curve through (round, value), leaving out values that are None; None where nothing is left.

    `note` says what the values are about and `text` writes one; `limit` is drawn as a dashed line; the axis starts at 0
    if `from_zero` and never passes `highest`.
    """
    known = [(number, value) for number, value in points if value is not None]
    if not known:
        return None
    first, last = known[0], known[-1]
    values = [value for _, value in known] + ([] if limit is None else [limit])
    x_steps = _whole_steps(first[0], last[0])
    y_steps = _steps(0.0 if from_zero else min(values), max(values), highest)
    x_place = _scale(min(first[0], x_steps[0]), max(last[0], first[0] + 1), low=_LEFT, high=WIDTH - _RIGHT)
    y_place = _scale(y_steps[0], y_steps[-1], low=HEIGHT - _BOTTOM, high=_TOP)
    dots = tuple(Marker(x_place(number), y_place(value), f"round {number}: {text(value)}") for number, value in known)
    line = " ".join(f"{'L' if index else 'M'}{dot.x:g} {dot.y:g}" for index, dot in enumerate(dots))
    floor = HEIGHT - _BOTTOM
    return Curve(
        title=title,
        note=note,
        description=_described(f"{title} ({note})", first, last, text=text, limit=limit),
        path=line,
        area=f"{line} L{dots[-1].x:g} {floor} L{dots[0].x:g} {floor} Z",
        markers=dots if len(dots) <= _MOST_MARKERS else (),
        last=Marker(dots[-1].x, dots[-1].y, text(last[1])),
        x_ticks=tuple(Tick(x_place(step), str(step)) for step in x_steps),
        y_ticks=tuple(Tick(y_place(step), _short(step, y_steps)) for step in y_steps),
        limit=None if limit is None else Tick(y_place(limit), text(limit)),
    )


def _described(
    title: str,
    first: tuple[int, float],
    last: tuple[int, float],
    *,
    text: Callable[[float], str],
    limit: float | None,
) -> str:
    end = f" to {text(last[1])} in round {last[0]}" if last != first else ""
    bound = "" if limit is None else f", target {text(limit)}"
    return f"{title} over rounds: {text(first[1])} in round {first[0]}{end}{bound}."


def _scale(start: float, end: float, *, low: float, high: float) -> Callable[[float], float]:
    def place(value: float) -> float:
        return round(low + (value - start) / (end - start) * (high - low), 2)

    return place


def _steps(lowest: float, highest_value: float, ceiling: float) -> list[float]:
    """About five round numbers that enclose the values."""
    span = highest_value - lowest or abs(highest_value) or 1.0
    step = _round_step(span / 4)
    start = math.floor(lowest / step + 1e-9)
    end = max(math.ceil(min(highest_value, ceiling) / step - 1e-9), start + 1)
    return [round(index * step, 12) for index in range(start, end + 1)]


def _whole_steps(first: int, last: int) -> list[int]:
    step = max(1, round(_round_step((last - first) / 5 or 1)))
    inner = [number for number in range(step, last + 1, step) if number >= first]
    return inner if inner and inner[0] == first else [first, *(n for n in inner if n - first >= step / 2)]


def _round_step(span: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `span`."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span * (1 - 1e-9))


def _short(value: float, steps: Sequence[float]) -> str:
    step = steps[1] - steps[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}"
