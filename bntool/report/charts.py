"""Charts as inline SVG, drawn from plain values: lines with bands, intervals, dumbbells.

A chart is a dict with `kind`, `series` (name, x, y, low, high), `x_label`, `y_label`, `x_log`, `y_log`,
`title`. Colours come from the page's style sheet (classes s0 to s7), so that one drawing serves light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

WIDTH, HEIGHT = 480.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 16.0, 12.0, 46.0
COLOURS = 8
#: chosen values that each get a tick of their own, at most
FEW = 7


@dataclass(frozen=True)
class Axis:
    """From data to pixels, linear or logarithmic; `ticks` are data values."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        at, low, high = (math.log10(max(v, 1e-300)) if self.log else v for v in (value, self.low, self.high))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, -0.02), 1.02) * (self.end - self.start)


def axis(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis around the finite values."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (0.1, 1.0)
    if log:
        low, high = (low / 2, high * 2) if low == high else (low, high)
        return Axis(low, high, start, end, True, log_ticks(low, high))
    if low == high:
        low, high = low - 0.5, high + 0.5
    pad = 0.06 * (high - low)
    low, high = low - pad, high + pad
    return Axis(low, high, start, end, False, linear_ticks(low, high))


def settings_axis(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis of values that somebody chose (batch sizes, depths): each has its tick while they are few."""
    chosen = sorted(set(values))
    found = axis(chosen, start, end, log=log)
    return replace(found, ticks=tuple(chosen)) if len(chosen) <= FEW else found


def linear_ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Round numbers inside the range: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= 0.8 * rough)
    first = math.ceil(low / step)
    return tuple(round(k * step, 10) for k in range(first, math.floor(high / step) + 1))


def log_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Powers of ten, with 2 and 5 between them where there is room; thinned where even powers are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def inside(leading: tuple[int, ...]) -> tuple[float, ...]:
        every = (round(d * 10.0**k, 12) for k in range(first, last + 1) for d in leading)
        return tuple(v for v in every if low * (1 - 1e-9) <= v <= high * (1 + 1e-9))

    full, powers = inside((1, 2, 5)), inside((1,))
    return full if len(full) <= most else powers[:: max(1, math.ceil(len(powers) / most))]


def number(value: float) -> str:
    """Short: 0.25, 1e-06, 1024."""
    return f"{value:.4g}"


def draw(chart: Mapping[str, Any]) -> str:
    """The chart as an <svg> with its legend, or a sentence when there is nothing to draw."""
    if not any(s["y"] for s in chart["series"]):
        return "<p class='muted'>Nothing to draw: no trial came this far.</p>"
    kinds: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "line": lines,
        "interval": intervals,
        "dumbbell": dumbbells,
    }
    body = kinds[chart["kind"]](chart)
    title = escape(chart["title"])
    height = HEIGHT if chart["kind"] == "line" else row_height(chart)
    svg = f"<svg viewBox='0 0 {WIDTH:g} {height:g}' role='img' aria-label='{title}'>{body}</svg>"
    return f"<figure><figcaption>{title}</figcaption>{svg}{legend(chart)}</figure>"


def legend(chart: Mapping[str, Any]) -> str:
    if chart["kind"] == "interval":
        return ""
    if chart["kind"] == "dumbbell":
        return "<ul class='legend'><li class='hollow'>training</li><li class='filled'>test</li></ul>"
    items = "".join(
        f"<li class='s{k % COLOURS}'>{escape(s['name'])}</li>" for k, s in enumerate(chart["series"])
    )
    return f"<ul class='legend'>{items}</ul>"


def lines(chart: Mapping[str, Any]) -> str:
    """Lines with points, their intervals as bands."""
    series = chart["series"]
    x = settings_axis((v for s in series for v in s["x"]), LEFT, WIDTH - RIGHT, log=chart["x_log"])
    every = [v for s in series for v in (*s["y"], *s["low"], *s["high"])]
    y = axis(every, HEIGHT - BOTTOM, TOP, log=chart["y_log"])
    drawn = [frame(chart, x, y)]
    for k, one in enumerate(series):
        drawn.append(f"<g class='s{k % COLOURS}'>{band(one, x, y)}{polyline(one, x, y)}{dots(one, x, y)}</g>")
    return "".join(drawn)


def band(one: Mapping[str, Any], x: Axis, y: Axis) -> str:
    if not one["low"]:
        return ""
    there = [(x(a), y(b)) for a, b in zip(one["x"], one["high"], strict=True)]
    back = [(x(a), y(b)) for a, b in zip(one["x"], one["low"], strict=True)]
    return f"<polygon class='band' points='{points(there + back[::-1])}'/>"


def polyline(one: Mapping[str, Any], x: Axis, y: Axis) -> str:
    pairs = [(x(a), y(b)) for a, b in zip(one["x"], one["y"], strict=True)]
    return f"<polyline class='line' points='{points(pairs)}'/>"


def points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def dots(one: Mapping[str, Any], x: Axis, y: Axis) -> str:
    radius = 3.2 if len(one["x"]) <= 16 else 1.8
    return "".join(
        f"<circle cx='{x(a):.1f}' cy='{y(b):.1f}' r='{radius}'>"
        f"<title>{escape(one['name'])}: {number(b)} at {number(a)}</title></circle>"
        for a, b in zip(one["x"], one["y"], strict=True)
    )


def frame(chart: Mapping[str, Any], x: Axis, y: Axis) -> str:
    """Grid lines, tick labels and the names of both axes."""
    bottom = HEIGHT - BOTTOM
    drawn = []
    for tick in y.ticks:
        drawn.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>"
        )
        drawn.append(label(LEFT - 7, y(tick) + 4, number(tick), "end"))
    for tick in x.ticks:
        drawn.append(
            f"<line class='tick' x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{bottom}' y2='{bottom + 4}'/>"
        )
        drawn.append(label(x(tick), bottom + 18, number(tick), "middle"))
    drawn.append(f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>")
    drawn.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, chart["x_label"], "middle", "name"))
    middle = (TOP + bottom) / 2
    turned = f"<g transform='translate(13 {middle:.0f}) rotate(-90)'>"
    drawn.append(turned + label(0, 0, chart["y_label"], "middle", "name") + "</g>")
    return "".join(drawn)


def label(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


ROW = 34.0
NAMES = 130.0


def row_height(chart: Mapping[str, Any]) -> float:
    return ROW * len(chart["series"]) + 50.0


def intervals(chart: Mapping[str, Any]) -> str:
    """A row a series: the estimate and its interval; a line at 0 where that is in sight."""
    series = chart["series"]
    shown = [v for s in series for v in (*s["y"], *s["low"], *s["high"]) if math.isfinite(v)]
    x = axis(
        [*shown, 0.0] if min(shown) > 0 and min(shown) < 0.5 * max(shown) else shown, NAMES, WIDTH - RIGHT
    )
    drawn = [scale(chart, x)]
    for k, one in enumerate(series):
        y = ROW * k + 26.0
        low, high = (one[e][0] if one[e] else one["y"][0] for e in ("low", "high"))
        ends = f"x1='{x(low):.1f}' x2='{x(high):.1f}'"
        told = f"{one['name']}: {number(one['y'][0])} ({number(low)} to {number(high)})"
        drawn.append(
            f"<g class='s{k % COLOURS}'><title>{escape(told)}</title>"
            f"<line class='span' {ends} y1='{y}' y2='{y}'/><circle cx='{x(one['y'][0]):.1f}' cy='{y}' "
            "r='5'/></g>"
        )
        drawn.append(label(NAMES - 10, y + 4, one["name"], "end"))
    return "".join(drawn)


def dumbbells(chart: Mapping[str, Any]) -> str:
    """A row a series with two values: the first filled, the second hollow, the gap between them a line."""
    series = chart["series"]
    x = axis((v for s in series for v in s["y"]), NAMES, WIDTH - RIGHT)
    drawn = [scale(chart, x)]
    for k, one in enumerate(series):
        y, (first, second) = ROW * k + 26.0, one["y"]
        drawn.append(
            f"<g class='s{k % COLOURS}'><title>{escape(one['name'])}: {number(first)}, "
            f"{number(second)}</title>"
            f"<line class='span' x1='{x(first):.1f}' x2='{x(second):.1f}' y1='{y}' y2='{y}'/>"
            f"<circle cx='{x(first):.1f}' cy='{y}' r='5'/>"
            f"<circle class='open' cx='{x(second):.1f}' cy='{y}' r='5'/></g>"
        )
        drawn.append(label(NAMES - 10, y + 4, one["name"], "end"))
    return "".join(drawn)


def scale(chart: Mapping[str, Any], x: Axis) -> str:
    bottom = row_height(chart) - 40.0
    drawn = [f"<line class='axis' x1='{NAMES}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>"]
    for tick in x.ticks:
        kind = "zero" if tick == 0 else "grid"
        drawn.append(f"<line class='{kind}' x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='8' y2='{bottom}'/>")
        drawn.append(label(x(tick), bottom + 17, number(tick), "middle"))
    drawn.append(label((NAMES + WIDTH - RIGHT) / 2, bottom + 35, chart["x_label"], "middle", "name"))
    return "".join(drawn)
