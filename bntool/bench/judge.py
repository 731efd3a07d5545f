"""From what was timed to verdicts: one family of comparisons, doubts, confirmation, waivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from bntool.bench.assemble import doubted, explanation, output_error
from bntool.bench.conduct import Measurement, measure
from bntool.bench.examine import Examination, Spawn
from bntool.bench.gate import FAIL, INCONCLUSIVE, check_budgets, overall, time_gate
from bntool.bench.plan import Case, Effort
from bntool.bench.result import PairResult
from bntool.bench.statistics import Ratio, interval, spread
from bntool.bench.verdict import Verdict, decide, holm_levels
from bntool.bench.waivers import Waiver, waived
from bntool.progress import Progress

#: what an interval is before anything is known
UNKNOWN = Ratio(float("nan"), 0.0, float("inf"), 0.0, 1.0)


@dataclass(frozen=True)
class Waivers:
    """Waivers by case name, and the day it is."""

    of: Mapping[str, Sequence[Waiver]] = field(default_factory=dict)
    today: date = field(default_factory=date.today)


@dataclass
class Timed:
    """A case on its way: what it is, what each candidate is, what was timed."""

    case: Case
    seen: list[Examination]
    found: Measurement
    spawn: Spawn
    overhead: Mapping[str, float]


def corrected(timed: Sequence[Timed], alpha: float) -> list[dict[int, Ratio]]:
    """Every case's ratios with the levels that Holm gives them as one family."""
    places = [(t, index) for t in timed for index in sorted(t.found.looks)]
    levels = holm_levels([t.found.looks[i].ratio.p_value for t, i in places], alpha)
    by_place = {(id(t), i): level for (t, i), level in zip(places, levels, strict=True)}
    return [{i: final(t.found, i, by_place[id(t), i]) for i in t.found.looks} for t in timed]


def final(found: Measurement, index: int, level: float) -> Ratio:
    """The interval of the last look at its share of `level`; the p-value stays adjusted for the looks."""
    look = found.looks[index]
    ratio = interval(found.centers(index), level * found.plan.share[look.index])
    return replace(ratio, p_value=look.ratio.p_value)


@dataclass(frozen=True)
class Judgement:
    """The verdict, why (where that needs a reason), and what the clock says about the gate."""

    verdict: Verdict
    why: str
    clock: str


def judged(case: Case, found: Measurement, index: int, ratio: Ratio, alpha: float) -> Judgement:
    """From the interval, then from the evidence against it."""
    doubt = found.failures.get(index, "")
    verdict = Verdict.INCONCLUSIVE
    if not doubt:
        verdict = decide(ratio, case.gate.tolerance, case.gate.floor_s, found.baseline_s())
        doubt = doubted(case, found, index, verdict, ratio)
    if doubt:
        return Judgement(Verdict.INCONCLUSIVE, doubt, INCONCLUSIVE)
    clock = time_gate(verdict, ratio, case.gate)
    return Judgement(verdict, explanation(verdict, found, index, alpha), clock)


def pair(t: Timed, index: int, ratio: Ratio, alpha: float) -> PairResult:
    """Everything about one candidate against the baseline, before any confirmation."""
    gate, found = t.case.gate, t.found
    seen = judged(t.case, found, index, ratio, alpha)
    outputs = output_error(t.seen[0], t.seen[index], t.case.conditions.dtype)
    budgets = check_budgets(gate.budgets, t.seen[index].facts, outputs)
    between, within = spread(found.pairs(index)) if found.pairs(index) else (float("nan"), float("nan"))
    return PairResult(
        case=t.case.name,
        name=t.case.candidates[index].name,
        baseline=t.case.candidates[0].name,
        verdict=seen.verdict,
        ratio=ratio,
        tolerance=gate.tolerance,
        floor_s=gate.floor_s,
        min_speedup=gate.min_speedup,
        outputs=outputs,
        gate=overall(seen.clock, budgets),
        clock=seen.clock,
        budgets=budgets,
        warning=outputs.reason if outputs else "",
        why=seen.why,
        replicate_log_ratios=tuple(found.centers(index)),
        between=between,
        within=within,
    )


def confirmed(t: Timed, pairs: list[PairResult], effort: Effort, progress: Progress) -> list[PairResult]:
    """Time the failing ones once more on fresh workers; a failure that does not come back is inconclusive."""
    failing = [i for i, p in enumerate(pairs, 1) if p.clock == FAIL]
    if not failing:
        return pairs
    kept = {i for i in range(1, len(t.case.candidates)) if i not in failing}
    again = measure(
        t.case,
        replace(effort, seed=effort.seed + 1),
        t.spawn,
        failures=dict.fromkeys(kept, "not part of the confirmation"),
        family=len(failing),
        progress=progress,
    )
    return [confirm(p, i, t.case, again, effort.alpha) if i in failing else p for i, p in enumerate(pairs, 1)]


def confirm(p: PairResult, index: int, case: Case, again: Measurement, alpha: float) -> PairResult:
    """A failure stands where the second run could not be made, and where it says the same."""
    if index not in again.looks:
        return replace(p, why=f"could not be confirmed: {again.failures.get(index, again.stopped)}")
    ratio = again.looks[index].ratio
    second = judged(case, again, index, ratio, alpha)
    return seconded(p, ratio, second.clock, second.why if second.verdict is Verdict.INCONCLUSIVE else "")


def seconded(p: PairResult, ratio: Ratio, clock: str, doubt: str) -> PairResult:
    """A failing comparison with what fresh workers gave: it stands, or it is inconclusive."""
    if clock == FAIL:
        return replace(p, confirmation=ratio)
    why = f"{p.verdict} at first ({p.ratio.estimate:.3f}), but fresh workers gave {ratio.estimate:.3f}"
    return replace(
        p,
        confirmation=ratio,
        verdict=Verdict.INCONCLUSIVE,
        gate=overall(INCONCLUSIVE, p.budgets),
        clock=INCONCLUSIVE,
        why="; ".join(filter(None, [why, doubt])),
    )


def waive(p: PairResult, waivers: Waivers) -> PairResult:
    return replace(p, waived=waived(waivers.of.get(p.case, ()), p.name, waivers.today))
