"""What claim 1 draws: signals layer by layer, and the loss along the step, as charts and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bntool.study.claims.base import Chart, Result, Series, Table, drawn, mean
from bntool.study.signals import decades, factor_per_layer, hidden
from bntool.study.trial import LANDSCAPE, SIGNALS

Layers = list[dict[str, Any]]
COLUMNS = (
    "factor a layer",
    "spread (decades)",
    "last input's deviation",
    "dead features",
    "last input's rank",
)


def layers(result: Result, index: int = 0) -> Layers:
    """The snapshot `index`: 0 is before training, -1 after it."""
    found: Layers = result[SIGNALS][index]["layers"]
    return found


def depth_charts(
    begun: Mapping[tuple[str, str], list[Result]], trained: Mapping[str, list[Result]]
) -> tuple[Chart, ...]:
    start = {
        f"{drawn(norm)}, {init if init == 'default' else init.title()} init": [layers(r) for r in rows]
        for (norm, init), rows in begun.items()
        if init in ("default", "he")
    }
    end = {drawn(n): [layers(r, -1) for r in rows if not r["diverged"]] for n, rows in trained.items()}
    return (
        through_depth("Gradient through depth, before training", start),
        through_depth("Gradient through depth, after training", end),
    )


def through_depth(title: str, cells: Mapping[str, list[Layers]]) -> Chart:
    lines = tuple(profile(name, snapshots) for name, snapshots in cells.items() if snapshots)
    return Chart(title, "layer (1 is next to the input)", "gradient norm", lines, y_log=True)


def profile(name: str, snapshots: list[Layers]) -> Series:
    """Geometric mean over seeds, layer by layer."""
    columns = list(zip(*map(hidden, snapshots), strict=True))
    means = tuple(10 ** mean([math.log10(max(v, 1e-30)) for v in column]) for column in columns)
    return Series(name, tuple(float(k + 1) for k in range(len(means))), means)


def landscape_charts(trained: Mapping[str, list[Result]]) -> tuple[Chart, ...]:
    titles = {"loss_range": "Loss range along the step", "gradient_change": "Gradient change along the step"}
    return tuple(along_training(title, key, trained) for key, title in titles.items())


def along_training(title: str, key: str, trained: Mapping[str, list[Result]]) -> Chart:
    """Geometric mean over seeds at the start, after a quarter and at the end."""
    lines = []
    for norm, results in trained.items():
        rows = [r[LANDSCAPE] for r in results if not r["diverged"]]
        if rows:
            marks = tuple(float(snap["step"]) for snap in rows[0])
            columns = zip(*([snap[key] for snap in row] for row in rows), strict=True)
            means = tuple(10 ** mean([math.log10(max(v, 1e-9)) for v in column]) for column in columns)
            lines.append(Series(drawn(norm), marks, means))
    return Chart(title, "steps trained", title.split(" along")[0].lower(), tuple(lines), y_log=True)


def start_table(begun: Mapping[tuple[str, str], list[Result]]) -> Table:
    rows = [(drawn(n), init, *row([layers(r) for r in results])) for (n, init), results in begun.items()]
    return Table("Before training", ("norm", "init", *COLUMNS), tuple(rows))


def trained_table(trained: Mapping[str, list[Result]]) -> Table:
    """A quarter of the way and at the end; networks that diverged have no row."""
    rows = []
    for norm, results in trained.items():
        kept = [r for r in results if not r["diverged"]]
        for index in range(1, len(kept[0][SIGNALS])) if kept else ():
            step = kept[0][SIGNALS][index]["step"]
            rows.append((drawn(norm), step, *row([layers(r, index) for r in kept])))
    return Table("While training", ("norm", "step", *COLUMNS), tuple(rows))


def row(snapshots: Sequence[Layers]) -> tuple[Any, ...]:
    """Means over seeds, in the order of COLUMNS."""
    last = [snap[-1] for snap in snapshots]
    dead = mean([mean([s["dead"] for s in snap[1:]]) for snap in snapshots])
    return (
        round(mean([factor_per_layer(snap) for snap in snapshots]), 3),
        round(mean([decades(snap) for snap in snapshots]), 2),
        round(mean([s["deviation"] for s in last]), 3),
        f"{100 * dead:.1f} %",
        round(mean([s["rank"] for s in last]), 3),
    )
