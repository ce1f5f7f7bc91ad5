"""Charts as plain numbers in a coordinate system of WIDTH x HEIGHT; templates/parts.html draws them as SVG."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from resnet_jax.reporting.figures import Bin

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 196  # the frame of the axes
MOST_POINTS = 1000  # of a line
DOTS = 12  # a line of no more points has a dot at each


@dataclasses.dataclass(frozen=True)
class Series:
    """A line before it is drawn: points (x, y), in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Tick:
    """A number beside an axis. place: its coordinate."""

    place: float
    label: str


@dataclasses.dataclass(frozen=True)
class Line:
    """points: coordinates, as the attribute of an SVG polyline. dots: the coordinates one by one; none for many."""

    name: str
    points: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
    """A rectangle on the x axis."""

    x: float
    y: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """What to draw. description: for people who do not see it."""

    title: str
    description: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()


def line_chart(title: str, series: Sequence[Series], x_label: str = "epoch", *, zero: bool = False) -> Chart | None:
    """A chart of several lines; None if there is no finite point. zero: the y axis has 0."""
    held = [Series(one.name, [p for p in one.points if all(map(math.isfinite, p))]) for one in series]
    held = [one for one in held if one.points]
    if not held:
        return None
    every = [point for one in held for point in one.points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_ticks = ticks(min(0.0, *ys) if zero else min(ys), max(ys), 5)
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])
    whole = [x for x in ticks(x_low, x_high, 6) if x == int(x) and x_low <= x <= x_high] or [min(xs)]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (_scaled(point[0], x_low, x_high, LEFT, RIGHT), _scaled(point[1], y_low, y_high, BOTTOM, TOP))

    return Chart(
        title,
        _describe(title, held, x_label),
        x_label,
        tuple(Tick(place((x, y_low))[0], f"{x:g}") for x in whole),
        tuple(Tick(place((x_low, y))[1], f"{y:g}") for y in y_ticks),
        tuple(_line(one.name, [place(point) for point in _thinned(one.points)]) for one in held),
    )


def reliability_chart(bins: Sequence[Bin]) -> Chart:
    """The reliability diagram: a bar of accuracy for each bin of confidence, and the diagonal of a calibrated network.

    Source: arXiv:1706.04599, figure 1.
    """
    shares = [round(0.2 * i, 1) for i in range(6)]
    across = [Tick(_scaled(share, 0, 1, LEFT, RIGHT), f"{share:g}") for share in shares]
    up = [Tick(_scaled(share, 0, 1, BOTTOM, TOP), f"{share:g}") for share in shares]
    bars = []
    for one in bins:
        if one.accuracy is not None:
            left, right = (_scaled(edge, 0, 1, LEFT, RIGHT) for edge in (one.low, one.high))
            y = _scaled(one.accuracy, 0, 1, BOTTOM, TOP)
            bars.append(Bar(round(left + 1, 1), y, round(right - left - 2, 1), round(BOTTOM - y, 1)))
    diagonal = Line("calibrated", f"{LEFT},{BOTTOM} {RIGHT},{TOP}")
    told = "Accuracy of the predictions in each bin of confidence. The table below has the same numbers."
    return Chart("Reliability", told, "confidence", tuple(across), tuple(up), (diagonal,), tuple(bars))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from the one below `low` to the one above `high`, about so many."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def curve(rows: Sequence[dict[str, Any]], key: str, name: str) -> Series:
    """A column of the rows over their epochs. Rows without a number there are left out."""
    held = [(_number(row.get("epoch", i)), _number(row.get(key))) for i, row in enumerate(rows, 1)]
    return Series(name, [(x, y) for x, y in held if x is not None and y is not None])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (value - low) / (high - low) * (end - start), 1)


def _line(name: str, places: list[tuple[float, float]]) -> Line:
    dots = tuple(places) if len(places) <= DOTS else ()
    return Line(name, " ".join(f"{x:g},{y:g}" for x, y in places), dots)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _describe(title: str, series: Sequence[Series], x_label: str) -> str:
    words = [f"{one.name} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in series]
    return f"{title} by {x_label}: {', '.join(words)}."
