"""Claim 1: training is steadier, gradients vanish and explode less."""

from __future__ import annotations

import math
from typing import Any

from bntool.study.claims.base import (
    Finding,
    Known,
    Result,
    called,
    difference,
    matched,
    mean,
    tune,
)
from bntool.study.claims.signal_views import (
    depth_charts,
    landscape_charts,
    layers,
    start_table,
    trained_table,
)
from bntool.study.plan import Plan
from bntool.study.signals import decades, factor_per_layer
from bntool.study.trial import LANDSCAPE, SIGNALS, Trial
from bntool.study.verdict import Measure

#: the gradient's spread from bottom to top has to shrink by this many decades to count: a factor of two
MATTERS = math.log10(2.0)


class Stability:
    key = "stability"
    question = "Does it make training steadier: fewer vanishing and exploding gradients?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        start = {
            (norm, init): [
                plan.trial(norm, s, steps=0, init=init, rate=0.0, measures=(SIGNALS,))
                for s in plan.started_seeds
            ]
            for norm in (plan.baseline, plan.treated)
            for init in plan.inits
        }
        rate = self.common_rate(plan, known, [t for cell in start.values() for t in cell])
        running = {
            norm: [plan.trial(norm, s, rate, measures=(SIGNALS, LANDSCAPE)) for s in plan.measured_seeds]
            for norm in (plan.baseline, plan.treated)
        }
        known.all(t for cell in running.values() for t in cell)
        begun = {cell: known.all(trials) for cell, trials in start.items()}
        trained = {norm: known.all(trials) for norm, trials in running.items()}
        return self.finding(plan, begun, trained, rate)

    def common_rate(self, plan: Plan, known: Known, also: list[Trial]) -> float:
        """The rate both arms train at. Trials named in `also` are asked for in the same go."""
        known.all(also)
        cells = {n: (n, dict[str, Any]()) for n in (plan.baseline, plan.treated)}
        return matched(*tune(plan, known, cells).values())

    def finding(
        self,
        plan: Plan,
        begun: dict[tuple[str, str], list[Result]],
        trained: dict[str, list[Result]],
        rate: float,
    ) -> Finding:
        base, norm = plan.baseline, plan.treated
        measures = [spread(plan, begun[norm, i], begun[base, i], i, i == "default") for i in plan.inits]
        measures += during(plan, trained)
        primary = measures[0]
        growth = {cell: mean([factor_per_layer(layers(r)) for r in rows]) for cell, rows in begun.items()}
        return Finding(
            1,
            self.key,
            self.question,
            primary.verdict,
            headline(plan, begun, growth, primary),
            f"Gradient norm by the output of every convolution and linear, one batch in train mode, "
            f"{plan.seeds} paired seeds, at the start and while training with rate {rate:.3g} in both arms. "
            "Decides: the spread |log10(bottom / top)| at the start with the model's own "
            "initialisation; a factor "
            "of two counts. Loss range and gradient change are taken along steps of 0.5 to 4 rates "
            "(Santurkar et al. 2018).",
            tuple(measures),
            tuple(conditions(plan, growth, measures)),
            (*depth_charts(begun, trained), *landscape_charts(trained)),
            (start_table(begun), trained_table(trained)),
            {"factor_per_layer": {f"{n}/{i}": v for (n, i), v in growth.items()}, "rate": rate},
        )


def spread(plan: Plan, treated: list[Result], base: list[Result], init: str, primary: bool) -> Measure:
    effect = difference(
        [-decades(layers(r)) for r in treated],
        [-decades(layers(r)) for r in base],
        plan.family_level if primary else plan.level,
    )
    name = "gradient spread at the start" + ("" if init == "default" else f", {init} initialisation")
    return Measure(name, effect, MATTERS, "decades less", primary)


def during(plan: Plan, trained: dict[str, list[Result]]) -> list[Measure]:
    """While training; arms that diverged have no measurement, which leaves the seed out of both."""
    pairs = [
        (n, b)
        for n, b in zip(trained[plan.treated], trained[plan.baseline], strict=True)
        if not (n["diverged"] or b["diverged"])
    ]
    found = [
        Measure(
            "gradient spread while training",
            difference([-later(n) for n, _ in pairs], [-later(b) for _, b in pairs], plan.level),
            MATTERS,
            "decades less",
        )
    ]
    for key, name in (
        ("loss_range", "loss range along the step"),
        ("gradient_change", "gradient change along the step"),
    ):
        effect = difference(
            [-logged(n, key) for n, _ in pairs], [-logged(b, key) for _, b in pairs], plan.level
        )
        found.append(Measure(name, effect, MATTERS, "decades less"))
    return found


def later(result: Result) -> float:
    """Mean spread over the snapshots after the start."""
    return mean([decades(snap["layers"]) for snap in result[SIGNALS][1:]])


def logged(result: Result, key: str) -> float:
    return mean([math.log10(max(snap[key], 1e-9)) for snap in result[LANDSCAPE]])


def headline(
    plan: Plan,
    begun: dict[tuple[str, str], list[Result]],
    growth: dict[tuple[str, str], float],
    primary: Measure,
) -> str:
    base, norm = plan.baseline, plan.treated
    count = len(layers(begun[base, "default"][0]))
    ends = {n: mean([decades(layers(r)) for r in begun[n, "default"]]) for n in (base, norm)}
    return (
        f"Before training, gradients at layer 1 and layer {count - 1} differ by a factor of "
        f"{10 ** ends[base]:.3g} without and {10 ** ends[norm]:.3g} with {called(norm)}: from layer to "
        f"layer, towards the input, they change by {growth[base, 'default']:.2f} and "
        f"{growth[norm, 'default']:.2f}."
    )


def conditions(plan: Plan, growth: dict[tuple[str, str], float], measures: list[Measure]) -> list[str]:
    said = []
    for init, measure in zip(plan.inits[1:], measures[1:], strict=False):
        base, norm = growth[plan.baseline, init], growth[plan.treated, init]
        said.append(
            f"With {init.title()} initialisation: {measure.verdict} (factor a layer {base:.2f} without, "
            f"{norm:.2f} with)."
        )
    own, he = (
        measures[0].verdict,
        {m.name: m.verdict for m in measures}.get("gradient spread at the start, he initialisation"),
    )
    if own == "shown" and he in ("not shown", "reversed"):
        said.append(
            "So the model's initialisation is what the norm makes up for here: He initialisation alone "
            "does it too."
        )
    if growth[plan.treated, "default"] > 1.15:
        said.append(
            "With the norm and ReLU gradients grow towards the input, in theory by 1.21 a layer "
            "(sqrt(pi / (pi - 1)))."
        )
    return said
