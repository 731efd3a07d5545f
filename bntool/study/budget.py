"""How long a study takes here, and the largest tier that fits a budget.

The speed is measured once, before the first trial. From then on the plan is fixed: a slow machine takes
longer, it does not find something else. `tier=` (or a stored plan) skips the measurement altogether.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from bntool.errors import UsageError
from bntool.study.claims.base import Claim
from bntool.study.data import Data
from bntool.study.plan import TIERS, Plan, tiered
from bntool.study.rehearsal import expected
from bntool.study.setting import Setting, deterministic
from bntool.study.training import EVALUATED, evaluation_steps, score, train
from bntool.study.trial import COST, Trial

#: share of the budget that trials may take by estimate: the rest is for starting, reporting and misjudging
USED = 0.6


@dataclass(frozen=True)
class Speed:
    """Measured on the plain arm and the one with the norm, the slower of the two.

    Units: seconds; `step_s` by batch size; `score_s` for scoring EVALUATED examples.
    """

    build_s: float
    step_s: dict[int, float]
    score_s: float
    finish_s: float

    def step(self, batch_size: int) -> float:
        """Linear between and beyond the two sizes measured."""
        (small, low), (large, high) = sorted(self.step_s.items())
        slope = max(high - low, 0.0) / (large - small)
        return low + slope * (batch_size - small)

    def of(self, trial: Trial, plan: Plan, cost_s: float) -> float:
        """Seconds one trial takes on one core."""
        if COST in trial.measures:
            return cost_s
        deeper = 1.0
        if plan.depths and trial.vary:
            deeper = (1 + dict(trial.vary)[plan.vary]) / (1 + min(plan.depths))
        scoring = len(evaluation_steps(trial.steps)) * self.score_s + self.finish_s
        measuring = 6 * len(trial.measures) * self.step(128)
        return deeper * (self.build_s + trial.steps * self.step(trial.batch_size) + scoring + measuring)


def measure(setting: Setting, plan: Plan) -> Speed:
    """Train the two arms for a moment at two batch sizes."""
    arms = (plan.baseline, plan.treated)
    sizes = (2, max(plan.batch_size, 4))
    build_s = max(timed(partial(setting.build, Trial(n, plan.seed))) for n in arms)
    models = [setting.build(Trial(n, plan.seed)) for n in arms]
    step_s = {size: max(stepping(setting, m, size) for m in models) for size in sizes}
    test = setting.data.test.first(EVALUATED)
    score_s = max(timed(partial(score, m, test, setting.data.task, setting.loss_fn)) for m in models)
    whole = (len(setting.data.test) + len(setting.data.train)) / max(1, len(test))
    return Speed(build_s, step_s, score_s, score_s * whole)


def stepping(setting: Setting, model: nn.Module, batch_size: int, steps: int = 10) -> float:
    trial = Trial("", 0, rate=1e-3, batch_size=batch_size)
    few = Data("", setting.data.train.first(256), setting.data.test.first(1))

    def run(count: int) -> float:
        return timed(lambda: train(model, few, trial.at(steps=count), loss_fn=setting.loss_fn), repeats=2)

    return max((run(2 * steps) - run(steps)) / steps, 1e-5)


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of a few runs: seconds."""
    taken = []
    with deterministic():
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return min(taken)


def duration(speed: Speed, plan: Plan, claims: Sequence[Claim], workers: int, cost_s: float) -> float:
    """Seconds the whole study is expected to take."""
    trials = expected(plan, claims)
    alone = sum(speed.of(t, plan, cost_s) for t in trials if COST in t.measures)
    shared = sum(speed.of(t, plan, cost_s) for t in trials if COST not in t.measures)
    return alone + shared / workers


def choose_tier(
    speed: Speed, plan: Plan, claims: Sequence[Claim], workers: int, budget_s: float, cost_s: float
) -> tuple[int, float]:
    """The largest tier that fits, and how long it is expected to take; the smallest when none does."""
    best = (0, duration(speed, tiered(plan, 0), claims, workers, cost_s))
    for tier in range(1, len(TIERS)):
        taken = duration(speed, tiered(plan, tier), claims, workers, cost_s)
        if taken > USED * budget_s:
            break
        best = (tier, taken)
    return best


def seconds(text: str | float) -> float:
    """ "90", "90s", "3m" or "1h" in seconds. Raises: UsageError."""
    if isinstance(text, int | float):
        return float(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"cannot read the time {text!r}", where="--budget", next="Write 90s, 3m or 1h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
