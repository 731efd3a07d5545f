"""Paired timing inside one process, against a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bntool.bench.paired import compare_callables
from bntool.bench.verdict import Verdict


class ScriptedClock:
    """Says how long each callable takes: its own cost, drift of the machine, noise. Nothing is really run."""

    def __init__(
        self, costs: dict[Callable[[], object], float], *, noise: float = 0.02, seed: int = 0
    ) -> None:
        self.costs, self.noise, self.now = costs, noise, 0.0
        self.rng = np.random.default_rng(seed)

    def __call__(self, call: Callable[[], object], loops: int) -> float:
        drift = 1.0 + 0.3 * np.sin(self.now / 3.0)
        took = loops * self.costs[call] * drift * float(np.exp(self.noise * self.rng.standard_normal()))
        self.now += took
        return took


def first() -> None: ...
def second() -> None: ...
def third() -> None: ...


CALLS = {"first": first, "second": second, "third": third}


def test_the_first_is_the_baseline_and_verdicts_follow_the_costs() -> None:
    clock = ScriptedClock({first: 0.005, second: 0.006, third: 0.004})
    base, slow, fast = compare_callables(CALLS, clock=clock, budget_s=2.0)
    assert base.ratio.estimate == 1.0
    assert slow.verdict is Verdict.SLOWER
    assert fast.verdict is Verdict.FASTER
    assert slow.ratio.low < 1.2 < slow.ratio.high
    assert len(slow.samples_s) == len(base.samples_s)


def test_equal_costs_are_the_same() -> None:
    alarms = 0
    for seed in range(40):
        clock = ScriptedClock({first: 0.005, second: 0.005, third: 0.005}, seed=seed)
        alarms += any(
            t.verdict is not Verdict.SAME for t in compare_callables(CALLS, clock=clock, rounds=60)[1:]
        )
    assert alarms <= 1


def test_real_work_on_the_real_clock() -> None:
    def little() -> float:
        return float(np.linalg.norm(np.ones(20_000)))

    def three_times_as_much() -> float:
        return little() + little() + little()

    _, other = compare_callables({"little": little, "more": three_times_as_much}, rounds=60)
    assert other.verdict is Verdict.SLOWER
    assert other.ratio.estimate > 2.0
