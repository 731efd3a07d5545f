"""Claim 2: fewer steps to a target, and higher learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bntool.study.claims.base import (
    Chart,
    Finding,
    Known,
    Result,
    Series,
    Table,
    across,
    best_rate,
    by_rate,
    called,
    chance_in,
    difference,
    drawn,
    grid,
    mean,
    repeated,
    scores,
)
from bntool.study.plan import Plan
from bntool.study.trial import Trial
from bntool.study.verdict import Measure

#: a rate "trains" when every seed gets this share of the way from chance to the best score of any arm
TRAINS = 0.8
#: the target is this share of the way from chance to what both arms reach
TARGET = 0.9
#: steps are known to a factor of 2 ** (1 / 4): scores are taken that far apart
RESOLUTION = 0.25


class Speed:
    key = "speed"
    question = "Does it converge faster and allow higher learning rates?"

    def judge(self, plan: Plan, known: Known) -> Finding:
        arms = (plan.baseline, plan.treated)
        grids = {n: grid(plan, n, plan.rates, plan.ranged_on) for n in arms}
        known.all(t for cell in grids.values() for t in cell)
        tried = {n: known.all(cell) for n, cell in grids.items()}
        chance = chance_in(tried[plan.baseline])
        goal = plan.target or target(plan, grids, tried, chance)
        tuned = {n: fastest(grids[n], tried[n], goal) for n in arms}
        cells = {(n, rate): repeated(plan, n, rate) for n in arms for rate in dict.fromkeys(tuned.values())}
        known.all(t for cell in cells.values() for t in cell)
        runs = {cell: known.all(trials) for cell, trials in cells.items()}
        return finding(plan, grids, tried, runs, tuned, goal, chance)


def target(plan: Plan, grids: dict[str, list[Trial]], tried: dict[str, list[Result]], chance: float) -> float:
    """TARGET of the way from chance to the lower of the two arms' best mean scores."""
    tops = []
    for norm, cell in grids.items():
        means = [mean(v) for v in by_rate(cell, scores(tried[norm])).values()]
        tops.append(max(means))
    reach = max(tops) if min(tops) < chance + 0.5 * (max(tops) - chance) else min(tops)
    return round(chance + TARGET * (reach - chance), 4)


def steps_to(result: Result, goal: float) -> float:
    """The first evaluated step with a score of `goal`; twice the training's length when it never came."""
    for step, value in zip(result["steps"], result["score"], strict=True):
        if value >= goal:
            return float(step)
    return math.inf


def bounded(result: Result, goal: float, steps: int) -> float:
    return min(steps_to(result, goal), 2.0 * steps)


def fastest(cell: Sequence[Trial], results: Sequence[Result], goal: float) -> float:
    """The rate with the fewest steps to the goal (geometric mean over tuning seeds); then the best score."""
    steps = by_rate(cell, [-math.log2(bounded(r, goal, t.steps)) for t, r in zip(cell, results, strict=True)])
    final = by_rate(cell, scores(results))
    return best_rate({rate: [mean(v) + 0.01 * mean(final[rate])] for rate, v in steps.items()})


def working(cell: Sequence[Trial], results: Sequence[Result], floor: float) -> list[float]:
    """Rates at which every seed reaches `floor`."""
    return [rate for rate, values in by_rate(cell, scores(results)).items() if min(values) >= floor]


def finding(
    plan: Plan,
    grids: dict[str, list[Trial]],
    tried: dict[str, list[Result]],
    runs: dict[tuple[str, float], list[Result]],
    tuned: dict[str, float],
    goal: float,
    chance: float,
) -> Finding:
    base, norm = plan.baseline, plan.treated
    best = max(float(r["test_score"]) for rows in tried.values() for r in rows)
    floor = chance + TRAINS * (best - chance)
    works = {n: working(grids[n], tried[n], floor) for n in (base, norm)}

    def saved(name: str, rates: tuple[float, float], level: float, primary: bool = False) -> Measure:
        found = {n: runs[n, rate] for n, rate in zip((norm, base), rates, strict=True)}
        logs = {n: [-math.log2(bounded(r, goal, plan.steps)) for r in rows] for n, rows in found.items()}
        effect = difference(logs[norm], logs[base], level).widened(RESOLUTION)
        return Measure(f"steps to {goal:.3g}, {name}", effect, 1.0, "halvings", primary)

    primary = saved("rates tuned", (tuned[norm], tuned[base]), plan.family_level, True)
    others = [
        saved(f"rate {rate:.3g} in both", (rate, rate), plan.level)
        for rate in dict.fromkeys((tuned[base], tuned[norm]))
    ]
    counts = {n: [steps_to(r, goal) for r in runs[n, tuned[n]]] for n in (base, norm)}
    never = {n: sum(math.isinf(c) for c in counts[n]) for n in counts}
    return Finding(
        2,
        "speed",
        Speed.question,
        primary.verdict,
        headline(plan, counts, tuned, goal, works),
        f"{plan.optimizer}, batches of {plan.batch_size}, {plan.steps} steps, rates {plan.rates[0]:.3g} to "
        f"{plan.rates[-1]:.3g} "
        f"tuned per arm on {len(plan.ranged_on)} other seeds, then {plan.seeds} paired seeds. Target: a "
        "test score of "
        f"{goal:.3g}, {TARGET:.0%} of the way from chance to what the arms reach. A rate works when "
        "every seed "
        f"gets to {floor:.2f}. Decides: steps to the target at tuned rates; a factor of two counts.",
        (primary, *others),
        tuple(conditions(plan, works, never, counts)),
        (rate_chart(plan, grids, tried), curve_chart(plan, runs, tuned)),
        (rates_table(plan, works, tuned, counts),),
        {
            "target": goal,
            "tuned": tuned,
            "working": works,
            "steps": {n: [None if math.isinf(c) else c for c in v] for n, v in counts.items()},
            "largest_rate_ratio": largest_ratio(works, base, norm),
        },
    )


def largest_ratio(works: dict[str, list[float]], base: str, norm: str) -> float | None:
    return max(works[norm]) / max(works[base]) if works[base] and works[norm] else None


def middle(counts: Sequence[float]) -> float:
    ordered = sorted(counts)
    return ordered[len(ordered) // 2]


def said(count: float, most: int) -> str:
    return f"more than {most} steps" if math.isinf(count) else f"{count:.0f} steps"


def headline(
    plan: Plan,
    counts: dict[str, list[float]],
    tuned: dict[str, float],
    goal: float,
    works: dict[str, list[float]],
) -> str:
    base, norm = plan.baseline, plan.treated
    return (
        f"A test score of {goal:.3g} takes {said(middle(counts[base]), plan.steps)} without and "
        f"{said(middle(counts[norm]), plan.steps)} with {called(norm)}, each at its best learning rate "
        f"({tuned[base]:.3g} and {tuned[norm]:.3g}).{largest_said(works, base, norm)}"
    )


def largest_said(works: dict[str, list[float]], base: str, norm: str) -> str:
    found = largest_ratio(works, base, norm)
    if found is None and works[norm]:
        span = f"{min(works[norm]):.3g} to {max(works[norm]):.3g}"
        return f" In this many steps no learning rate trains it fully without; with it those from {span} do."
    if found is None:
        return ""
    if found == 1.0:
        return " The largest learning rate that trains is the same."
    told = f"{found:.3g} times larger" if found > 1.0 else f"{1.0 / found:.3g} times smaller"
    return f" The largest learning rate that trains is {told} with it."


def conditions(
    plan: Plan, works: dict[str, list[float]], never: dict[str, int], counts: dict[str, list[float]]
) -> list[str]:
    apart = plan.rates[1] / plan.rates[0]
    found = [
        f"Largest rates are read off a grid, with a factor of {apart:g} between rates, "
        f"as the worst of {len(plan.ranged_on)} seeds: they have no interval and decide nothing."
    ]
    for norm, count in never.items():
        if count:
            found.append(
                f"{called(norm).capitalize()} did not get there in {plan.steps} steps on {count} of "
                f"{len(counts[norm])} seeds: "
                "it is counted as twice that, which is too few."
            )
    for norm, rates in works.items():
        if not rates:
            found.append(
                f"{called(norm).capitalize()} trains at none of the rates tried: no ratio of rates can "
                "be given."
            )
        elif max(rates) == plan.rates[-1] or min(rates) == plan.rates[0]:
            found.append(
                f"{called(norm).capitalize()} still trains at the edge of the grid: its range may be wider."
            )
    return found


def rate_chart(plan: Plan, grids: dict[str, list[Trial]], tried: dict[str, list[Result]]) -> Chart:
    lines = []
    for norm, cell in grids.items():
        values = by_rate(cell, scores(tried[norm]))
        lines.append(Series(drawn(norm), tuple(values), tuple(min(v) for v in values.values())))
    return Chart(
        "Score after training, by learning rate",
        "learning rate",
        "worst seed's test score",
        tuple(lines),
        x_log=True,
    )


def curve_chart(plan: Plan, runs: dict[tuple[str, float], list[Result]], tuned: dict[str, float]) -> Chart:
    lines = []
    for norm, rate in tuned.items():
        rows = [r for r in runs[norm, rate] if not r["diverged"]]
        if rows:
            columns = list(zip(*(r["score"] for r in rows), strict=True))
            lines.append(across(f"{drawn(norm)}, rate {rate:.3g}", rows[0]["steps"], columns, plan.level))
    return Chart("Learning curves at tuned rates", "step", "test score", tuple(lines), x_log=True)


def rates_table(
    plan: Plan, works: dict[str, list[float]], tuned: dict[str, float], counts: dict[str, list[float]]
) -> Table:
    rows = []
    for norm in (plan.baseline, plan.treated):
        rates = works[norm]
        width = f"{math.log2(max(rates) / min(rates)) + 1:.0f}" if rates else "0"
        span = f"{min(rates):.3g} to {max(rates):.3g}" if rates else "none"
        rows.append((norm, f"{tuned[norm]:.3g}", said(middle(counts[norm]), plan.steps), span, width))
    return Table(
        "Rates", ("arm", "tuned rate", "median to target", "rates that train", "octaves"), tuple(rows)
    )
