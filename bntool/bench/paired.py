"""Paired timing of plain callables inside this process: the same statistics without worker processes.

For a study's cost claim, for a self-check, and for modules that cannot be sent to a worker. One process
draws one share of luck (heap layout, page placement), which no interval from one process can show: the
result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bntool.bench.clock import WallClock
from bntool.bench.sampling import balanced_orders, loops_for, rounds_for, warm_up
from bntool.bench.statistics import Ratio, blocks, center, interval, log_ratios
from bntool.bench.verdict import Verdict, decide, holm_levels

Clock = Callable[[Callable[[], object], int], float]


def wall_clock(call: Callable[[], object], loops: int) -> float:
    """Seconds that `loops` calls took, by the wall. For work that is over when the call returns (a CPU)."""
    return WallClock().time(call, loops) * loops


@dataclass(frozen=True)
class CallableTiming:
    """One callable: its median, its ratio to the first one. Units: seconds per call."""

    name: str
    median_s: float
    ratio: Ratio
    verdict: Verdict
    samples_s: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": str(self.verdict), "samples_s": list(self.samples_s)}


def single(call: Callable[[], object], clock: Clock) -> float:
    """Seconds one call takes once it is warm."""
    return float(np.median(np.array(warm_up(lambda: clock(call, 1))[-5:])))


def collect(
    calls: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    seed: int,
    clock: Clock = wall_clock,
    rounds: int | None = None,
) -> dict[str, list[float]]:
    """Warm every callable up, then time all of them round by round in balanced random order. Units: s per
    call.
    """
    names = list(calls)
    loops = {n: loops_for(single(calls[n], clock)) for n in names}
    round_s = sum(clock(calls[n], loops[n]) for n in names)
    count = rounds or rounds_for(budget_s, round_s, candidates=len(names), most=2000)
    times: dict[str, list[float]] = {n: [] for n in names}
    for order in balanced_orders(np.random.default_rng(seed), len(names), count):
        for index in order:
            name = names[index]
            times[name].append(clock(calls[name], loops[name]) / loops[name])
    return times


def compare_callables(
    calls: Mapping[str, Callable[[], object]],
    *,
    budget_s: float = 5.0,
    tolerance: float = 0.05,
    alpha: float = 0.05,
    seed: int = 0,
    rounds: int | None = None,
    clock: Clock = wall_clock,
) -> list[CallableTiming]:
    """Time every callable against the first one. The first entry of the result is the baseline (ratio 1).

    Each callable does one whole unit of work (a forward, a training step). The interval comes from ten runs
    of neighbouring rounds and is corrected for the number of callables; it holds for this process only.
    Units: seconds.
    """
    times = collect(calls, budget_s=budget_s, seed=seed, clock=clock, rounds=rounds)
    baseline, *others = calls
    centers = {
        n: [center(b) for b in blocks(log_ratios(np.array(times[n]), np.array(times[baseline])))]
        for n in others
    }
    levels = holm_levels([interval(centers[n], alpha).p_value for n in others], alpha)
    ratios = {n: interval(centers[n], level) for n, level in zip(others, levels, strict=True)}
    ratios[baseline] = Ratio(1.0, 1.0, 1.0, 1.0, 1.0)
    return [
        CallableTiming(
            n, float(np.median(times[n])), ratios[n], decide(ratios[n], tolerance), tuple(times[n])
        )
        for n in calls
    ]
