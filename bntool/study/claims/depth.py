"""Claim 4: it makes deeper networks trainable; told apart from what initialisation does."""

from __future__ import annotations

from collections.abc import Mapping

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
from bntool.study.claims.unmeasured import unmeasured
from bntool.study.deepening import EXTRA
from bntool.study.plan import Plan
from bntool.study.statistics import paired_t
from bntool.study.trial import Trial
from bntool.study.verdict import Measure, Verdict

#: points of score that count
MATTERS = 0.05
#: a network that fits its training examples less well than this is still learning
FITTED = 0.97

Cell = tuple[str, str, int]


class Depth:
    key = "depth"
    question = "Does it enable deeper networks?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        if not plan.vary:
            return without_depth()
        cells = {
            (norm, init, depth): (norm, {"init": init, "vary": ((plan.vary, depth),)})
            for norm in (plan.baseline, plan.treated)
            for init in plan.depth_inits
            for depth in plan.depths
        }
        grids = tune(plan, known, {str(c): value for c, value in cells.items()})
        rates = {c: top(grids[str(c)]) for c in cells}
        trials: dict[Cell, list[Trial]] = {
            c: repeated(plan, norm, rates[c], **changes) for c, (norm, changes) in cells.items()
        }
        known.all(t for cell in trials.values() for t in cell)
        reached = {c: max(grids[str(c)].values()) for c in cells}
        runs = {c: known.all(t) for c, t in trials.items()}
        chance = chance_in(next(iter(runs.values())))
        return finding(plan, runs, rates, decisive_depth(plan, reached, chance))


def without_depth() -> Finding:
    advice = "Give the factory an argument such as depth=, or name yours: --vary depth=5,10,20,30."
    return unmeasured(4, Depth.key, Depth.question, "the model has one depth only.", advice, possible=False)


def decisive_depth(plan: Plan, reached: Mapping[Cell, float], chance: float) -> int:
    """The greatest depth at which one of the arms learns as made: where none does, nothing is compared.

    `reached`: each cell's best score on the tuning seeds, so that the measured ones do not choose.
    """
    learnt = learners(reached, chance)
    own = {depth for norm, init, depth in learnt if init == plan.depth_inits[0]}
    return max(own, default=min(plan.depths))


def finding(
    plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float], deepest: int
) -> Finding:
    own = plan.depth_inits[0]
    measures = [
        measure(plan, runs, init, depth, deepest)
        for init in plan.depth_inits
        for depth in sorted(plan.depths, reverse=True)
    ]
    primary = next(m for m in measures if m.primary)
    ends = {n: mean(scores(runs[n, own, deepest])) for n in (plan.baseline, plan.treated)}
    return Finding(
        4,
        Depth.key,
        Depth.question,
        Verdict.INCONCLUSIVE if deepest == min(plan.depths) else primary.verdict,
        f"With {at_depth(plan, deepest)} the test score is {ends[plan.baseline]:.3f} without and "
        f"{ends[plan.treated]:.3f} with {called(plan.treated)} ({own} initialisation).",
        f"{plan.vary} = {', '.join(map(str, plan.depths))}; initialisations "
        f"{', '.join(plan.depth_inits)}; the rate tuned "
        f"for each cell on {plan.tuning_seeds} other seeds; {plan.steps} steps, {plan.seeds} paired "
        "seeds. Decides: the "
        "test score with the model's own initialisation, at the greatest depth at which one of the two "
        f"learns; {MATTERS:g} counts.",
        tuple(measures),
        tuple(conditions(plan, measures, runs, deepest)),
        tuple(chart(plan, runs, init) for init in plan.depth_inits),
        (table(plan, runs, rates),),
        {"scores": {"/".join(map(str, c)): scores(r) for c, r in runs.items()}},
    )


def at_depth(plan: Plan, depth: int) -> str:
    """In a sentence: depth 10, 3 extra layers behind each."""
    return f"{depth} {EXTRA} behind each" if plan.vary == EXTRA else f"{plan.vary} {depth}"


def measure(plan: Plan, runs: Mapping[Cell, list[Result]], init: str, depth: int, deepest: int) -> Measure:
    primary = init == plan.depth_inits[0] and depth == deepest
    treated, base = (scores(runs[n, init, depth]) for n in (plan.treated, plan.baseline))
    effect = difference(treated, base, plan.family_level if primary else plan.level)
    return Measure(
        f"test score, {at_depth(plan, depth)}, {init} initialisation", effect, MATTERS, "of score", primary
    )


def conditions(
    plan: Plan, measures: list[Measure], runs: Mapping[Cell, list[Result]], deepest: int
) -> list[str]:
    said = unfinished(plan, runs, deepest)
    if deepest < max(plan.depths):
        said.append(
            f"With {at_depth(plan, max(plan.depths))} neither network learns in {plan.steps} steps "
            "with its own initialisation."
        )
    found = {m.name: m for m in measures}
    for init in plan.depth_inits[1:]:
        m = found[f"test score, {at_depth(plan, deepest)}, {init} initialisation"]
        without, with_norm = (mean(scores(runs[n, init, deepest])) for n in (plan.baseline, plan.treated))
        said.append(
            f"With {init_name(init)} initialisation and {at_depth(plan, deepest)}: {m.verdict} "
            f"({without:.3f} without, {with_norm:.3f} with)."
        )
        own = next(x for x in measures if x.primary).verdict
        if own is Verdict.SHOWN and m.verdict in (Verdict.NOT_SHOWN, Verdict.REVERSED):
            said.append(
                f"So it is the initialisation that fails at this depth; {init_name(init)} repairs it "
                "without a norm."
            )
    return said


def unfinished(plan: Plan, runs: Mapping[Cell, list[Result]], deepest: int) -> list[str]:
    """Cells that learnt something but were still learning: more steps could change their score."""
    said = []
    for (norm, init, depth), results in runs.items():
        fit = mean([float(r["train_score"]) for r in results])
        if depth == deepest and 0.5 < fit < FITTED:
            said.append(
                f"{called(norm).capitalize()} with {init_name(init)} initialisation has not been trained "
                f"to the end in {plan.steps} steps (training score {fit:.2f}): so this is speed as well."
            )
    return said


def init_name(init: str) -> str:
    """He and Xavier are names."""
    return init if init == "default" else init.title()


def chart(plan: Plan, runs: Mapping[Cell, list[Result]], init: str) -> Chart:
    lines = [
        across(drawn(n), plan.depths, [scores(runs[n, init, d]) for d in plan.depths], plan.level)
        for n in (plan.baseline, plan.treated)
    ]
    return Chart(
        f"Test score by depth, {init_name(init)} initialisation", plan.vary, "test score", tuple(lines)
    )


def table(plan: Plan, runs: Mapping[Cell, list[Result]], rates: Mapping[Cell, float]) -> Table:
    rows = []
    for cell, results in runs.items():
        span = paired_t(scores(results), plan.level)
        rows.append(
            (*cell, f"{rates[cell]:.3g}", f"{span.estimate:.3f}", sum(bool(r["diverged"]) for r in results))
        )
    return Table("Scores", ("norm", "init", plan.vary, "rate", "test score", "diverged"), tuple(rows))
