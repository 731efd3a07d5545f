"""What claims share: asking for trials until all are known, tuned rates, and the shape of a finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from bntool.study.arms import PLAIN, is_control
from bntool.study.plan import Plan
from bntool.study.statistics import Interval, paired_t
from bntool.study.trial import Trial
from bntool.study.verdict import Measure, Verdict

Result = Mapping[str, Any]
Cell = TypeVar("Cell")


class Needed(Exception):
    """These trials have to be run before the claim can go on."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        super().__init__(f"{len(self.trials)} trials")


@dataclass(frozen=True)
class Known:
    """Results by trial. Asking for ones that are not there raises `Needed`, which the scheduler answers."""

    results: Mapping[str, Result]
    asked: dict[str, Result] = field(default_factory=dict)
    """Those that were asked for."""

    def all(self, trials: Iterable[Trial]) -> list[Result]:
        wanted = list(trials)
        missing = [t for t in wanted if t.key not in self.results]
        if missing:
            raise Needed(missing)
        self.asked.update((t.key, self.results[t.key]) for t in wanted)
        return [self.results[t.key] for t in wanted]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `low` and `high` (or none) are its interval."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """What to draw. `kind`: "line" or "interval" (one horizontal bar a series)."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: str = "line"
    x_log: bool = False
    y_log: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Finding:
    """A claim's answer. `headline` is one sentence with the effect size; `conditions` say when it holds."""

    number: int
    claim: str
    question: str
    verdict: Verdict
    headline: str
    protocol: str
    measures: tuple[Measure, ...] = ()
    conditions: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Claim(Protocol):
    """One claim: `judge` raises Needed until all the trials it needs are known."""

    key: str
    question: str

    def judge(self, plan: Plan, known: Known) -> Finding: ...


def called(norm: str) -> str:
    """An arm's name in a sentence."""
    return "the plain network" if norm == PLAIN else norm if is_control(norm) else f"{norm} norm"


def drawn(norm: str) -> str:
    """An arm's name in a legend."""
    return "no norm" if norm == PLAIN else norm


def scores(results: Iterable[Result]) -> list[float]:
    return [float(r["test_score"]) for r in results]


def chance_in(results: Iterable[Result]) -> float:
    """The score of a network that knows nothing, which is the same for all."""
    return float(next(iter(results))["chance"])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def grid(plan: Plan, norm: str, rates: Sequence[float], seeds: Iterable[int], **changes: Any) -> list[Trial]:
    """Every rate with every seed."""
    return [plan.trial(norm, seed, rate, **changes) for rate in rates for seed in seeds]


def best_rate(results: Mapping[float, Sequence[float]]) -> float:
    """The rate with the highest mean; the lower rate where two tie."""
    return max(results, key=lambda rate: (round(mean(results[rate]), 6), -rate))


def by_rate(trials: Sequence[Trial], values: Sequence[float]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for trial, value in zip(trials, values, strict=True):
        found.setdefault(trial.rate, []).append(value)
    return found


def tune(
    plan: Plan, known: Known, cells: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[str, dict[float, float]]:
    """Mean score at each coarse rate for every cell (name -> norm and changes); all grids asked for at
    once.
    """
    trials = {
        name: grid(plan, norm, plan.coarse_rates, plan.tuned_on, **changes)
        for name, (norm, changes) in cells.items()
    }
    known.all(t for cell in trials.values() for t in cell)
    return {
        name: {rate: mean(v) for rate, v in by_rate(cell, scores(known.all(cell))).items()}
        for name, cell in trials.items()
    }


def top(means: Mapping[float, float]) -> float:
    return best_rate({rate: [value] for rate, value in means.items()})


#: share of the way from chance to the best score that a network has to go to count as having learnt
LEARNT = 0.25


def learners(reached: Mapping[Cell, float], chance: float) -> set[Cell]:
    """The cells that have learnt something, compared with the best of them."""
    best = max(reached.values())
    return {cell for cell, value in reached.items() if value >= chance + LEARNT * (best - chance) > chance}


def matched(*cells: Mapping[float, float]) -> float:
    """The one rate at which the worse of the cells does best."""
    return top({rate: min(cell[rate] for cell in cells) for rate in cells[0]})


def repeated(plan: Plan, norm: str, rate: float, **changes: Any) -> list[Trial]:
    """One cell with every measured seed."""
    return [plan.trial(norm, seed, rate, **changes) for seed in plan.measured_seeds]


def difference(
    treated: Sequence[float],
    baseline: Sequence[float],
    level: float,
    change: Callable[[float], float] = float,
) -> Interval:
    """Paired by seed: change(treated) - change(baseline)."""
    return paired_t([change(t) - change(b) for t, b in zip(treated, baseline, strict=True)], level)


def across(name: str, x: Sequence[float], values: Sequence[Sequence[float]], level: float = 0.95) -> Series:
    """A line through the means with their intervals over seeds; no score is above 1."""
    spans = [paired_t(v, level) for v in values]
    ends = [(s.low, min(s.high, 1.0)) if math.isfinite(s.low) else (s.estimate, s.estimate) for s in spans]
    return Series(
        name,
        tuple(map(float, x)),
        tuple(s.estimate for s in spans),
        tuple(low for low, _ in ends),
        tuple(high for _, high in ends),
    )
