"""Claim 7: layer norm and others are sometimes better."""

from __future__ import annotations

from collections.abc import Mapping

from bntool.study.claims.base import (
    Chart,
    Finding,
    Known,
    Result,
    Series,
    Table,
    called,
    difference,
    mean,
    repeated,
    scores,
    top,
    tune,
)
from bntool.study.claims.unmeasured import unmeasured
from bntool.study.plan import Plan
from bntool.study.statistics import paired_t
from bntool.study.trial import Trial
from bntool.study.verdict import Measure, Verdict, some

#: a point of accuracy counts
MATTERS = 0.01
ORDERS = {"shuffled": "shuffled batches", "sorted": "class-sorted batches"}

Cell = tuple[str, str]


class Alternatives:
    key = "alternatives"
    question = "Are layer norm and others sometimes better?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        if not plan.others:
            return without_others()
        cells = {
            (norm, order): (norm, {"order": order})
            for order in ORDERS
            for norm in (plan.treated, *plan.others)
        }
        grids = tune(plan, known, {str(c): value for c, value in cells.items()})
        rates = {c: top(grids[str(c)]) for c in cells}
        rivals = {order: best_other(plan, grids, order) for order in ORDERS}
        trials: dict[Cell, list[Trial]] = {
            c: repeated(plan, norm, rates[c], **changes) for c, (norm, changes) in cells.items()
        }
        known.all(t for cell in trials.values() for t in cell)
        return finding(plan, {c: known.all(t) for c, t in trials.items()}, rates, rivals)


def best_other(plan: Plan, grids: Mapping[str, Mapping[float, float]], order: str) -> str:
    """The alternative that did best on the tuning seeds, so that measured seeds do not choose it."""
    return max(plan.others, key=lambda n: max(grids[str((n, order))].values()))


def without_others() -> Finding:
    advice = "Name more norms: --norms none,batch,group,layer."
    return unmeasured(
        7, Alternatives.key, Alternatives.question, "no other norm was named.", advice, possible=False
    )


def finding(
    plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float], rivals: Mapping[str, str]
) -> Finding:
    level = 1.0 - (1.0 - plan.family_level) / len(ORDERS)
    primary = [measure(plan, runs, rivals[order], order, level, True) for order in ORDERS]
    others = [
        measure(plan, runs, norm, order, plan.level, False)
        for order in ORDERS
        for norm in plan.others
        if norm != rivals[order]
    ]
    verdict = some(m.verdict for m in primary)
    return Finding(
        7,
        Alternatives.key,
        Alternatives.question,
        verdict,
        " ".join(said(plan, runs, rivals[order], order, m) for order, m in zip(ORDERS, primary, strict=True)),
        f"{plan.steps} steps, batches of {plan.batch_size}, rates tuned per cell on {plan.tuning_seeds} "
        "other seeds, "
        f"{plan.seeds} paired seeds; batches shuffled, and each of one class. Decides: the alternative "
        "that tuned best "
        f"against {plan.treated}, in either condition (the error rate is shared by both); {MATTERS:g} "
        "counts.",
        (*primary, *others),
        tuple(conditions(primary, rivals)),
        tuple(chart(plan, runs, order) for order in ORDERS),
        (table(plan, runs, rates),),
        {"scores": {"/".join(c): scores(r) for c, r in runs.items()}},
    )


def measure(
    plan: Plan, runs: Mapping[Cell, list[Result]], norm: str, order: str, level: float, primary: bool
) -> Measure:
    effect = difference(scores(runs[norm, order]), scores(runs[plan.treated, order]), level)
    return Measure(f"{norm} over {plan.treated}, {ORDERS[order]}", effect, MATTERS, "of score", primary)


def said(plan: Plan, runs: Mapping[Cell, list[Result]], rival: str, order: str, m: Measure) -> str:
    own, other = mean(scores(runs[plan.treated, order])), mean(scores(runs[rival, order]))
    pair = f"{called(rival)} {other:.3f}, {called(plan.treated)} {own:.3f}"
    return f"{ORDERS[order].capitalize()}: {pair} ({m.verdict})."


def conditions(primary: list[Measure], rivals: Mapping[str, str]) -> list[str]:
    found = []
    for order, m in zip(ORDERS, primary, strict=True):
        if m.verdict is Verdict.REVERSED:
            found.append(f"With {ORDERS[order]} it is the other way round: {rivals[order]} is worse.")
    return found


def chart(plan: Plan, runs: Mapping[Cell, list[Result]], order: str) -> Chart:
    lines = []
    for k, norm in enumerate((plan.treated, *plan.others)):
        span = paired_t(scores(runs[norm, order]), plan.level)
        lines.append(Series(norm, (float(k),), (span.estimate,), (span.low,), (span.high,)))
    return Chart(f"Test score, {ORDERS[order]}", "test score", "", tuple(lines), kind="interval")


def table(plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float]) -> Table:
    rows = []
    for (norm, order), results in runs.items():
        broken = sum(bool(r["diverged"]) for r in results)
        rows.append((norm, order, f"{rates[norm, order]:.3g}", f"{mean(scores(results)):.3f}", broken))
    return Table(
        "Scores (mean over seeds)", ("norm", "batches", "rate", "test score", "diverged"), tuple(rows)
    )
