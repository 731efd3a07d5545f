"""Charts of timings as inline SVG: ratios with intervals, distributions, samples in the order taken, a
history.

Drawn from plain values; colours come from the page's style sheet (classes s0 to s7).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bntool.report.charts import COLOURS, Axis, axis, label, number

WIDTH, LEFT, RIGHT = 960.0, 70.0, 16.0
NAMES = 250.0
ROW = 46.0
#: more dots than this make a page slow and say no more
MOST_DOTS = 4000


@dataclass(frozen=True)
class Interval:
    """A row of the ratio chart: an estimate with its interval, and the number of each replicate."""

    name: str
    estimate: float
    low: float
    high: float
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dot:
    """One sample: when it was taken (s), how long it took (s), and whose it was (a colour)."""

    at: float
    value: float
    series: int


def figure(title: str, height: float, body: str, *, note: str = "") -> str:
    drawn = f"<svg viewBox='0 0 {WIDTH:g} {height:g}' role='img' aria-label='{escape(title)}'>{body}</svg>"
    below = f"<p class='muted'>{escape(note)}</p>" if note else ""
    return f"<figure class='broad'><figcaption>{escape(title)}</figcaption>{drawn}{below}</figure>"


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line class='{kind}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"


def dot(x: float, y: float, radius: float, told: str = "", kind: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    return f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}'>{title}</circle>"


def ratios(rows: Sequence[Interval], tolerance: float, parts: str) -> str:
    """A row a comparison: its interval, its estimate, a dot for each of its `parts`; the tolerance a band."""
    shown = [v for r in rows for v in (r.estimate, r.low, r.high, *r.parts) if math.isfinite(v) and v > 0]
    edges = [1.0 / (1.0 + tolerance), 1.0 + tolerance]
    x = axis([*shown, *edges], NAMES, WIDTH - RIGHT)
    bottom = ROW * len(rows) + 12.0
    band = f"<rect class='tolerated' x='{x(edges[0]):.1f}' y='6' width='{x(edges[1]) - x(edges[0]):.1f}' "
    drawn = [f"{band}height='{bottom - 6:.1f}'/>", line("zero", x(1.0), 6, x(1.0), bottom)]
    for k, row in enumerate(rows):
        drawn.append(_ratio(row, k + 1, x, ROW * k + 24.0))  # colour 0 is the baseline's
    drawn += [label(x(t), bottom + 18, number(t), "middle") for t in x.ticks]
    drawn.append(
        label((NAMES + WIDTH - RIGHT) / 2, bottom + 38, "time over the baseline's", "middle", "name")
    )
    note = f"The band is the tolerance of {tolerance:.1%}; small dots are {parts}."
    return figure("Ratio to the baseline, with its interval", bottom + 48, "".join(drawn), note=note)


def _ratio(row: Interval, k: int, x: Axis, y: float) -> str:
    name = label(NAMES - 12, y + 4, shortened(row.name), "end", "name")
    if not math.isfinite(row.estimate):
        return name + label(NAMES + 8, y + 4, "not measured", "start")
    told = f"{row.name}: {row.estimate:.4f} ({row.low:.4f} to {row.high:.4f})"
    parts = "".join(dot(x(p), y + 13, 2.4, f"{p:.4f}", "part") for p in row.parts)
    low, high = (v if math.isfinite(v) else row.estimate for v in (row.low, row.high))
    span = f"<g><title>{escape(told)}</title>{line('span', x(low), y, x(high), y)}"
    return f"{name}<g class='s{k % COLOURS}'>{span}{dot(x(row.estimate), y, 5)}</g>{parts}</g>"


def shortened(name: str, most: int = 34) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


def distributions(names: Sequence[str], times: Sequence[Sequence[float]]) -> str:
    """Each candidate's samples as a stepped histogram over a shared logarithmic axis. Units: seconds."""
    every = sorted(t for series in times for t in series)
    if len(every) < 10:
        return ""
    low, high = every[0], every[min(len(every) - 1, int(0.995 * len(every)))] * 1.02
    beyond = sum(t > high for t in every)
    x, bottom = axis([low * 1e3, high * 1e3], LEFT, WIDTH - RIGHT, log=True), 230.0
    bins = 90
    heights = [histogram(series, low, high, bins) for series in times]
    y = axis([0.0, max(max(h) for h in heights) or 1.0], bottom, 12.0)
    drawn = [line("axis", LEFT, y(0.0), WIDTH - RIGHT, y(0.0))]
    drawn += [label(x(t), bottom + 18, number(t), "middle") for t in x.ticks]
    drawn.append(label((LEFT + WIDTH) / 2, bottom + 38, "milliseconds per call", "middle", "name"))
    for k, bars in enumerate(heights):
        drawn.append(f"<g class='s{k % COLOURS}'>{steps(bars, low, high, x, y)}</g>")
    note = f"{beyond} of {len(every)} samples lie beyond the right edge; all of them count." if beyond else ""
    return figure("Distribution of all samples", bottom + 48, "".join(drawn), note=note) + legend(names)


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    """Shares of `values` in bins of equal width on the log scale."""
    counts = [0] * bins
    span = math.log(high / low) or 1.0
    for value in values:
        if value <= high:
            counts[min(bins - 1, max(0, int(math.log(value / low) / span * bins)))] += 1
    return [c / max(1, len(values)) for c in counts]


def steps(bars: Sequence[float], low: float, high: float, x: Axis, y: Axis) -> str:
    edges = [x(1e3 * low * (high / low) ** (k / len(bars))) for k in range(len(bars) + 1)]
    corners = [f"{edges[0]:.1f},{y(0.0):.1f}"]
    for k, share in enumerate(bars):
        corners += [f"{edges[k]:.1f},{y(share):.1f}", f"{edges[k + 1]:.1f},{y(share):.1f}"]
    corners.append(f"{edges[-1]:.1f},{y(0.0):.1f}")
    points = " ".join(corners)
    return f"<polygon class='band' points='{points}'/><polyline class='line' points='{points}'/>"


def legend(names: Sequence[str]) -> str:
    items = "".join(f"<li class='s{k % COLOURS}'>{escape(n)}</li>" for k, n in enumerate(names))
    return f"<ul class='legend'>{items}</ul>"


def run_order(dots: Sequence[Dot], ends: Sequence[float], names: Sequence[str]) -> str:
    """Every sample at the moment it was taken; a vertical line where a new set of processes starts."""
    if not dots:
        return ""
    chosen = sorted(random.Random(0).sample(range(len(dots)), min(MOST_DOTS, len(dots))))
    shown = [dots[k] for k in chosen]
    x = axis([0.0, dots[-1].at], LEFT, WIDTH - RIGHT)
    y, bottom = axis([d.value * 1e3 for d in shown], 230.0, 12.0, log=True), 230.0
    drawn = [
        line("grid", LEFT, y(t), WIDTH - RIGHT, y(t)) + label(LEFT - 8, y(t) + 4, number(t), "end")
        for t in y.ticks
    ]
    drawn += [line("zero", x(e), 12, x(e), bottom) for e in ends[:-1]]
    drawn += [f"<g class='s{k % COLOURS} tiny'>{_dots(shown, k, x, y)}</g>" for k in range(len(names))]
    drawn += [label(x(t), bottom + 18, number(t), "middle") for t in x.ticks]
    drawn.append(
        label((LEFT + WIDTH) / 2, bottom + 38, "seconds of sampling; ms per call upwards", "middle", "name")
    )
    note = f"{len(shown)} of {len(dots)} samples are drawn, at random." if len(shown) < len(dots) else ""
    return figure("Samples in the order taken", bottom + 48, "".join(drawn), note=note) + legend(names)


def _dots(shown: Sequence[Dot], series: int, x: Axis, y: Axis) -> str:
    return "".join(dot(x(d.at), y(d.value * 1e3), 1.5) for d in shown if d.series == series)


def shares_over_time(
    names: Sequence[str], ends: Sequence[float], shares: Sequence[Sequence[float | None]]
) -> str:
    """Contention by replicate, as steps over the same time axis: one line per kind of evidence, 0 to
    100 %.
    """
    if not ends:
        return ""
    x, y, bottom = axis([0.0, ends[-1]], LEFT, WIDTH - RIGHT), axis([0.0, 100.0], 130.0, 12.0), 130.0
    drawn = [
        line("grid", LEFT, y(t), WIDTH - RIGHT, y(t)) + label(LEFT - 8, y(t) + 4, f"{t:g} %", "end")
        for t in y.ticks
    ]
    for k, series in enumerate(shares):
        corners = []
        for start, end, share in zip([0.0, *ends], ends, series, strict=False):
            if share is not None:
                corners += [f"{x(start):.1f},{y(100 * share):.1f}", f"{x(end):.1f},{y(100 * share):.1f}"]
        drawn.append(f"<g class='s{k % COLOURS}'><polyline class='line' points='{' '.join(corners)}'/></g>")
    drawn += [label(x(t), bottom + 18, number(t), "middle") for t in x.ticks]
    drawn.append(label((LEFT + WIDTH) / 2, bottom + 38, "seconds of sampling", "middle", "name"))
    return figure("Contention over time", bottom + 48, "".join(drawn)) + legend(names)


def history(revisions: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Interval | None]]) -> str:
    """Ratios over revisions, oldest first: one line per comparison, with its intervals."""
    values = [
        v for series in rows for i in series if i for v in (i.low, i.high, i.estimate) if math.isfinite(v)
    ]
    if len(revisions) < 2 or not values:
        return ""
    x, y, bottom = (
        axis([0.0, len(revisions) - 1.0], LEFT, WIDTH - RIGHT),
        axis([*values, 1.0], 230.0, 12.0),
        230.0,
    )
    drawn = [
        line("grid", LEFT, y(t), WIDTH - RIGHT, y(t)) + label(LEFT - 8, y(t) + 4, number(t), "end")
        for t in y.ticks
    ]
    drawn.append(line("zero", LEFT, y(1.0), WIDTH - RIGHT, y(1.0)))
    for k, series in enumerate(rows):
        found = [(x(float(at)), i) for at, i in enumerate(series) if i and math.isfinite(i.estimate)]
        spans = "".join(line("span", at, y(i.low), at, y(i.high)) for at, i in found)
        marks = "".join(dot(at, y(i.estimate), 4, f"{i.name}: {i.estimate:.4f}") for at, i in found)
        joined = " ".join(f"{at:.1f},{y(i.estimate):.1f}" for at, i in found)
        drawn.append(
            f"<g class='s{k % COLOURS}'><polyline class='line' points='{joined}'/>{spans}{marks}</g>"
        )
    step = max(1, math.ceil(len(revisions) / 8))
    drawn += [label(x(float(k)), bottom + 18, r, "middle") for k, r in enumerate(revisions) if k % step == 0]
    return figure("Ratios over revisions", bottom + 30, "".join(drawn)) + legend(names)
