"""Claim 5: it suffers at very small batches."""

from __future__ import annotations

from collections.abc import Mapping

from bntool.study.arms import PLAIN
from bntool.study.claims.base import (
    Chart,
    Finding,
    Known,
    Result,
    Table,
    across,
    called,
    chance_in,
    difference,
    drawn,
    learners,
    mean,
    repeated,
    scores,
    top,
    tune,
)
from bntool.study.plan import THOROUGH, Plan
from bntool.study.statistics import paired_t
from bntool.study.trial import EXACT, Trial
from bntool.study.verdict import Measure, Verdict

#: points of score that count
MATTERS = 0.02
MADE_FOR_IT = ("renorm", "ghost")

Cell = tuple[str, int]


class SmallBatches:
    key = "small-batches"
    question = "Does it suffer at very small batches?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        norms = compared(plan)
        cells = {
            (norm, size): (norm, {"batch_size": size, "steps": steps_for(plan, size), "measures": (EXACT,)})
            for norm in norms
            for size in plan.batch_sizes
        }
        grids = tune(plan, known, {str(c): value for c, value in cells.items()})
        rates = {c: top(grids[str(c)]) for c in cells}
        trials: dict[Cell, list[Trial]] = {
            c: repeated(plan, norm, rates[c], **changes) for c, (norm, changes) in cells.items()
        }
        known.all(t for cell in trials.values() for t in cell)
        return finding(plan, {c: known.all(t) for c, t in trials.items()}, rates)


def reference(plan: Plan) -> str:
    """The norm that does not see the batch, which sets the measure: group norm if it is there."""
    if "group" in plan.others:
        return "group"
    return plan.others[0] if plan.others else plan.baseline


def compared(plan: Plan) -> tuple[str, ...]:
    """The norm in question, its measure, and those made for small batches; all of them in large studies."""
    swept = [n for n in plan.others if n in MADE_FOR_IT or plan.tier >= THOROUGH]
    return tuple(dict.fromkeys((plan.treated, reference(plan), *swept)))


def steps_for(plan: Plan, size: int) -> int:
    """At least `small_steps` updates and `small_examples` examples, the same for every arm."""
    return max(plan.small_steps, plan.small_examples // size)


def finding(plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float]) -> Finding:
    small, large = min(plan.batch_sizes), max(plan.batch_sizes)
    norm, other = plan.treated, reference(plan)
    lost = [
        b - a
        for a, b in zip(
            minus(scores(runs[norm, small]), scores(runs[norm, large])),
            minus(scores(runs[other, small]), scores(runs[other, large])),
            strict=True,
        )
    ]
    primary = Measure(
        f"score lost from batch {large} to {small}, beyond what {other} loses",
        paired_t(lost, plan.family_level),
        MATTERS,
        "of score",
        True,
    )
    sizes = sorted(plan.batch_sizes)
    ahead = [
        Measure(
            f"{other} ahead of {norm} at batch {size}",
            difference(scores(runs[other, size]), scores(runs[norm, size]), plan.level),
            MATTERS,
            "of score",
        )
        for size in sizes
    ]
    means = {c: mean(scores(r)) for c, r in runs.items()}
    known = learners(means, chance_in(runs[norm, small]))
    learnt = bool(known & {(norm, small), (other, small)})
    return Finding(
        5,
        SmallBatches.key,
        SmallBatches.question,
        primary.verdict if learnt else Verdict.INCONCLUSIVE,
        f"With batches of {small} {called(norm)} reaches {means[norm, small]:.3f} and {called(other)} "
        f"{means[other, small]:.3f}; with batches of {large} "
        f"{means[norm, large]:.3f} and {means[other, large]:.3f}.",
        f"Batch sizes {', '.join(map(str, sizes))}, each with at least {plan.small_examples} examples and "
        f"{plan.small_steps} steps seen; rates tuned per norm and batch size on {plan.tuning_seeds} "
        "other seeds; "
        f"{plan.seeds} paired seeds. Decides: what {norm} loses from batch {large} to {small} beyond "
        f"what {other} loses; "
        f"{MATTERS:g} counts. n_eff is the number of values that share a statistic (N * H * W).",
        (primary, *ahead, *exact(plan, runs)),
        tuple(conditions(plan, runs, ahead) + unlearnt(plan, small, learnt)),
        (chart(plan, runs),),
        (table(plan, runs, rates),),
        {
            "scores": {"/".join(map(str, c)): scores(r) for c, r in runs.items()},
            "n_eff": least_values(plan, runs),
        },
    )


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def exact(plan: Plan, runs: Mapping[Cell, list[Result]]) -> list[Measure]:
    """What moving averages cost: the same networks with exact statistics in their place."""
    small = min(plan.batch_sizes)
    rows = [r for r in runs[plan.treated, small] if "exact_score" in r]
    gained = [float(r["exact_score"]) - float(r["test_score"]) for r in rows]
    return [
        Measure(
            f"exact instead of moving statistics at batch {small}",
            paired_t(gained, plan.level),
            MATTERS,
            "of score",
        )
    ]


def least_values(plan: Plan, runs: Mapping[Cell, list[Result]]) -> dict[str, int]:
    """Smallest n_eff of any norm at each batch size."""
    found = {}
    for size in sorted(plan.batch_sizes):
        seen = runs[plan.treated, size][0].get("n_eff") or {}
        found[str(size)] = min(seen.values(), default=size)
    return found


def conditions(plan: Plan, runs: Mapping[Cell, list[Result]], ahead: list[Measure]) -> list[str]:
    values = least_values(plan, runs)
    said = ["Smallest n_eff: " + ", ".join(f"{n} at batch {size}" for size, n in values.items()) + "."]
    bad = [
        size for size, m in zip(sorted(plan.batch_sizes), ahead, strict=True) if m.verdict is Verdict.SHOWN
    ]
    if bad:
        said.append(f"Behind {reference(plan)} at batch {', '.join(map(str, bad))}.")
    small = min(plan.batch_sizes)
    if values[str(small)] >= 32 and plan.treated != PLAIN:
        said.append(
            f"A batch of {small} still gives every channel {values[str(small)]} values, so little is lost."
        )
    return said


def unlearnt(plan: Plan, size: int, learnt: bool) -> list[str]:
    told = (
        f"With batches of {size} no network learns in {steps_for(plan, size)} steps: give a larger --budget."
    )
    return [] if learnt else [told]


def chart(plan: Plan, runs: Mapping[Cell, list[Result]]) -> Chart:
    sizes = sorted(plan.batch_sizes)
    lines = [across(drawn(n), sizes, [scores(runs[n, s]) for s in sizes], plan.level) for n in compared(plan)]
    return Chart("Test score by batch size", "batch size", "test score", tuple(lines), x_log=True)


def table(plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float]) -> Table:
    rows = []
    for (norm, size), results in runs.items():
        better = [float(r["exact_score"]) for r in results if "exact_score" in r]
        rows.append(
            (
                norm,
                size,
                f"{rates[norm, size]:.3g}",
                f"{mean(scores(results)):.3f}",
                f"{mean(better):.3f}" if better else "",
                min((results[0].get("n_eff") or {}).values(), default=""),
            )
        )
    columns = ("norm", "batch", "rate", "test score", "with exact statistics", "smallest n_eff")
    return Table("Scores (mean over seeds)", columns, tuple(rows))
