"""Claim 3: it regularises, and can stand in for dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bntool.study.claims.base import (
    Chart,
    Finding,
    Known,
    Result,
    Series,
    Table,
    called,
    difference,
    matched,
    mean,
    repeated,
    scores,
    top,
    tune,
)
from bntool.study.plan import Plan
from bntool.study.trial import SHIFT
from bntool.study.verdict import Measure, Verdict, every

#: a point of accuracy counts
MATTERS = 0.01
#: a network has to fit its few training examples this well, or its gap says nothing
FITTED = 0.99

Runs = dict[tuple[str, float], list[Result]]


class Regularisation:
    key = "regularisation"
    question = "Does it regularise, and reduce the need for dropout?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        shared: dict[str, Any] = {"examples": plan.fit_examples, "steps": plan.fit_steps}
        dropped = {**shared, "dropout": plan.dropout}
        cells = {
            "plain": (plan.baseline, shared),
            "dropout": (plan.baseline, dropped),
            "norm": (plan.treated, shared),
            "both": (plan.treated, {**dropped, "measures": (SHIFT,)}),
        }
        grids = tune(plan, known, cells)
        equal = matched(*grids.values())
        rates = {name: top(means) for name, means in grids.items()}
        trials = {
            (name, rate): repeated(plan, norm, rate, **changes)
            for name, (norm, changes) in cells.items()
            for rate in dict.fromkeys((rates[name], equal))
        }
        known.all(t for cell in trials.values() for t in cell)
        return finding(plan, {cell: known.all(found) for cell, found in trials.items()}, rates, equal)


def finding(plan: Plan, runs: Runs, rates: Mapping[str, float], equal: float) -> Finding:
    primary = [
        gain(
            plan,
            runs,
            ("norm", rates["norm"]),
            ("plain", rates["plain"]),
            "test score, norm over plain, rates tuned",
            True,
        ),
        gain(
            plan,
            runs,
            ("norm", equal),
            ("plain", equal),
            f"test score, norm over plain, rate {equal:.3g} in both",
            True,
        ),
    ]
    others = [
        gain(
            plan,
            runs,
            ("norm", rates["norm"]),
            ("dropout", rates["dropout"]),
            "test score, norm over dropout, rates tuned",
        ),
        gain(
            plan,
            runs,
            ("both", rates["both"]),
            ("norm", rates["norm"]),
            "test score, dropout on top of norm, rates tuned",
        ),
        gap(plan, runs, equal),
    ]
    verdict, caveat = judged(primary, runs, rates, equal)
    return Finding(
        3,
        "regularisation",
        Regularisation.question,
        verdict,
        headline(primary, plan, runs, rates),
        f"{plan.fit_examples} training examples, {plan.fit_steps} steps, batches of {plan.batch_size}, "
        "dropout "
        f"{plan.dropout:g} ahead of the linears; {plan.seeds} paired seeds. Decides: norm over plain "
        "has to gain a point "
        f"of test score both with rates tuned per arm and at one rate ({equal:.3g}, where the worst arm "
        "does best): a "
        "norm allows other rates, and the rate alone changes how a network generalises.",
        (*primary, *others),
        tuple(caveat + shift_said(runs, rates)),
        (gap_chart(runs, rates),),
        (table(plan, runs, rates, equal),),
        {"rates": dict(rates), "equal_rate": equal},
    )


def gain(
    plan: Plan,
    runs: Runs,
    treated: tuple[str, float],
    base: tuple[str, float],
    name: str,
    primary: bool = False,
) -> Measure:
    level = plan.family_level if primary else plan.level
    return Measure(
        name, difference(scores(runs[treated]), scores(runs[base]), level), MATTERS, "of score", primary
    )


def gaps(results: list[Result]) -> list[float]:
    return [float(r["train_score"]) - float(r["test_score"]) for r in results]


def gap(plan: Plan, runs: Runs, equal: float) -> Measure:
    smaller = difference(
        [-g for g in gaps(runs["norm", equal])], [-g for g in gaps(runs["plain", equal])], plan.level
    )
    return Measure(
        f"gap between training and test smaller, rate {equal:.3g} in both", smaller, MATTERS, "of score"
    )


def judged(
    primary: list[Measure], runs: Runs, rates: Mapping[str, float], equal: float
) -> tuple[Verdict, list[str]]:
    """Both conditions have to agree, and the networks compared have to fit what they were given."""
    said = []
    for name in ("plain", "norm"):
        for rate in dict.fromkeys((rates[name], equal)):
            fit = mean([float(r["train_score"]) for r in runs[name, rate]])
            if fit < FITTED:
                said.append(
                    f"{name} at rate {rate:.3g} reaches only {fit:.2f} on its own training examples: it "
                    "has not been "
                    "trained to the end, so this compares speed rather than generalisation."
                )
    verdict = every(m.verdict for m in primary)
    unsafe = said and verdict in (Verdict.SHOWN, Verdict.REVERSED)
    return (Verdict.INCONCLUSIVE if unsafe else verdict), said


def headline(primary: list[Measure], plan: Plan, runs: Runs, rates: Mapping[str, float]) -> str:
    tuned, equal = (m.effect for m in primary)
    drop = mean(scores(runs["dropout", rates["dropout"]])) - mean(scores(runs["plain", rates["plain"]]))
    return (
        f"{called(plan.treated).capitalize()} changes the test score by {tuned.estimate:+.3f} at tuned "
        f"rates ({tuned.low:+.3f} to "
        f"{tuned.high:+.3f}) and {equal.estimate:+.3f} at an equal rate; dropout by {drop:+.3f}."
    )


def shift_said(runs: Runs, rates: Mapping[str, float]) -> list[str]:
    """Variance shift: dropout in front of a norm makes stored variances wrong at inference."""
    found = [r["variance_shift"] for r in runs["both", rates["both"]] if r.get("variance_shift")]
    if not found:
        return []
    worst = {name: mean([f[name] for f in found]) for name in found[0]}
    name = max(worst, key=lambda n: worst[n])
    return [
        f"Dropout before a norm: at the norm {name} the stored variance is off by a factor of "
        f"{worst[name]:.2f} at inference (1 is none; Li et al. 2018)."
    ]


def gap_chart(runs: Runs, rates: Mapping[str, float]) -> Chart:
    lines = []
    for k, (name, rate) in enumerate(rates.items()):
        values = [mean([float(r[key]) for r in runs[name, rate]]) for key in ("test_score", "train_score")]
        lines.append(Series(name, (float(k), float(k)), tuple(values)))
    return Chart("Test and training score at tuned rates", "score", "", tuple(lines), kind="dumbbell")


def table(plan: Plan, runs: Runs, rates: Mapping[str, float], equal: float) -> Table:
    rows = []
    for name in rates:
        for rate in dict.fromkeys((rates[name], equal)):
            cell = runs[name, rate]
            score, fit = mean(scores(cell)), mean([float(r["train_score"]) for r in cell])
            rows.append((name, f"{rate:.3g}", f"{fit:.3f}", f"{score:.3f}", f"{fit - score:.3f}"))
    return Table("Scores (mean over seeds)", ("arm", "rate", "training", "test", "gap"), tuple(rows))
