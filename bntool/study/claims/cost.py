"""Claim 6: it costs time and memory."""

from __future__ import annotations

from typing import Any

from bntool.study.claims.base import Chart, Finding, Known, Result, Series, Table, called
from bntool.study.plan import Plan
from bntool.study.statistics import Interval
from bntool.study.trial import COST
from bntool.study.verdict import Measure, Verdict

#: 5 % of a time counts
MATTERS = 0.05


class Cost:
    key = "cost"
    question = "Does it cost time and memory?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        trial = plan.trial(plan.treated, plan.seed, 0.0, measures=(COST,), steps=0)
        result = known.all([trial])[0]
        rows = {
            "training step": entry(result["step"], "norm"),
            "inference": entry(result["inference"], "norm"),
        }
        if any(r["name"] == "folded" for r in result["inference"]):
            rows["folded inference"] = entry(result["inference"], "folded")
        measures = tuple(
            Measure(f"time of {name}", interval(row), MATTERS, "more", name == "training step")
            for name, row in rows.items()
        )
        saved, weights = ratio(result["saved_bytes"]), ratio(result["weight_bytes"])
        told = ", ".join(map(sentence, measures))
        return Finding(
            6,
            self.key,
            self.question,
            measures[0].verdict,
            f"With {called(plan.treated)}: {told}; memory kept for the backward pass {saved:+.0%}.",
            f"Batches of {plan.batch_size}, one process, both networks timed in turns, ratios of "
            "neighbouring rounds. "
            "Decides: the time of a training step; 5 % counts. The interval holds for this process and this "
            "machine. Memory is counted exactly: bytes saved for the backward pass, and weights with "
            "buffers.",
            measures,
            (result["fold_note"] + ".",) if result["fold_note"] else (),
            (chart(rows),),
            (table(result, saved, weights),),
            {"saved_bytes": result["saved_bytes"], "weight_bytes": result["weight_bytes"]},
        )


def sentence(m: Measure) -> str:
    """A time with its interval, where the machine was quiet enough for one."""
    what = m.name.removeprefix("time of ")
    if m.verdict is Verdict.INCONCLUSIVE:
        return f"{what} unclear (machine too busy)"
    return f"{what} {m.effect.estimate:+.0%} ({m.effect.low:+.0%} to {m.effect.high:+.0%})"


def entry(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = next(r for r in rows if r["name"] == name)
    return {**found, "ratio_estimate": found["estimate"] - 1.0}


def interval(row: dict[str, Any]) -> Interval:
    return Interval(row["estimate"] - 1.0, row["low"] - 1.0, row["high"] - 1.0, 10, row["confidence"])


def ratio(found: dict[str, int]) -> float:
    return found["norm"] / found["plain"] - 1.0 if found["plain"] else 0.0


def chart(rows: dict[str, dict[str, Any]]) -> Chart:
    lines = tuple(
        Series(name, (float(k),), (row["ratio_estimate"],), (row["low"] - 1.0,), (row["high"] - 1.0,))
        for k, (name, row) in enumerate(rows.items())
    )
    return Chart("Time added, as a share", "share added", "", lines, kind="interval")


def table(result: Result, saved: float, weights: float) -> Table:
    rows: list[tuple[Any, ...]] = []
    for what in ("step", "inference"):
        for r in result[what]:
            rows.append((what, r["name"], f"{1000 * r['median_s']:.3f} ms", f"{r['estimate']:.3f}"))
    for what, change in (("saved_bytes", saved), ("weight_bytes", weights)):
        for name, count in result[what].items():
            rows.append(
                (
                    what.replace("_", " "),
                    name,
                    f"{count / 1024:.1f} KiB",
                    f"{1 + (change if name == 'norm' else 0):.3f}",
                )
            )
    return Table("Time and memory", ("what", "network", "value", "ratio"), tuple(rows))
