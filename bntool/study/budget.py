"""How long a study takes here, and the largest tier that fits a budget.

The speed is measured once, before the first trial, on a CPU in processor time: a busy machine takes longer,
but it chooses the same study and so finds the same. `tier=` (or a stored plan) fixes it altogether.
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
from bntool.study.training import EVALUATED, SCORED, evaluation_steps, train
from bntool.study.trial import COST, Trial

#: share of the budget that trials may take by estimate: the rest is for starting, reporting and misjudging
USED = 0.9
#: about how long one timing of training steps may take, and how many steps it has at most
TIMING_S, TIMING_STEPS = 0.1, 20


@dataclass(frozen=True)
class ArmSpeed:
    """Units: seconds; `step_s` by batch size; `score_s` for scoring EVALUATED examples."""

    build_s: float
    step_s: dict[int, float]
    score_s: float

    def step(self, batch_size: int) -> float:
        """Linear between and beyond the two sizes measured."""
        (small, low), (large, high) = sorted(self.step_s.items())
        slope = max(high - low, 0.0) / (large - small)
        return low + slope * (batch_size - small)


@dataclass(frozen=True)
class Speed:
    """Of the plain arm and of the one with the norm, which stands for the other norms too.

    `finish` is how many times EVALUATED examples the last scores are taken on.
    """

    plain: ArmSpeed
    normed: ArmSpeed
    finish: float = 2.0

    def of(self, trial: Trial, plan: Plan, cost_s: float) -> float:
        """Seconds one trial takes on one core."""
        if COST in trial.measures:
            return cost_s
        arm = self.plain if trial.norm == plan.baseline else self.normed
        deeper = 1.0
        if plan.depths and trial.vary:
            deeper = (1 + dict(trial.vary)[plan.vary]) / (1 + min(plan.depths))
        scored = self.finish + (len(evaluation_steps(trial.steps)) if trial.followed else 0.0)
        measured = 6 * len(trial.measures) * arm.step(128)
        return deeper * (
            arm.build_s + trial.steps * arm.step(trial.batch_size) + scored * arm.score_s + measured
        )


Clock = Callable[[], float]


def clock_for(device: str) -> Clock:
    """Processor time of this process, which other processes do not change; the wall for other devices."""
    return time.process_time if device == "cpu" else time.perf_counter


def measure(setting: Setting, plan: Plan) -> Speed:
    """Train the two arms for a moment at two batch sizes."""
    train_size, test_size = len(setting.data.train), len(setting.data.test)
    scored = min(test_size, SCORED) + min(train_size, EVALUATED)
    plain, normed = (arm_speed(setting, plan, norm) for norm in (plan.baseline, plan.treated))
    return Speed(plain, normed, scored / min(test_size, EVALUATED))


def arm_speed(setting: Setting, plan: Plan, norm: str) -> ArmSpeed:
    trial = Trial(norm, plan.seed, rate=1e-3, optimizer=plan.optimizer)
    model = setting.build(trial)
    clock = clock_for(setting.device)
    build_s = timed(partial(setting.build, trial), clock)
    step_s = {size: stepping(setting, model, trial, size, clock) for size in (2, max(plan.batch_size, 4))}
    test = setting.data.test.first(EVALUATED)
    return ArmSpeed(build_s, step_s, timed(partial(setting.scoring, model, test), clock))


def stepping(setting: Setting, model: nn.Module, trial: Trial, batch_size: int, clock: Clock) -> float:
    """Seconds a step takes: the difference between a longer and a shorter training."""
    few = Data("", setting.data.train.first(2 * batch_size), setting.data.test.first(1))

    def run(steps: int) -> float:
        short = trial.at(steps=steps, batch_size=batch_size)
        return timed(lambda: train(model, few, short, scoring=setting.scoring), clock)

    once = run(1)
    more = max(1, min(TIMING_STEPS, int(TIMING_S / max(once, 1e-5))))
    return max((run(1 + more) - once) / more, 1e-5)


def timed(work: Callable[[], object], clock: Clock, repeats: int = 3) -> float:
    """The fastest of a few runs, of fewer where one is slow: seconds."""
    taken: list[float] = []
    with deterministic():
        while len(taken) < repeats and sum(taken) < 5 * TIMING_S:
            began = clock()
            work()
            taken.append(clock() - began)
    return min(taken)


def duration(speed: Speed, plan: Plan, claims: Sequence[Claim], workers: int, cost_s: float) -> float:
    """Seconds the whole study is expected to take."""
    trials = expected(plan, claims)
    alone = sum(speed.of(t, plan, cost_s) for t in trials if COST in t.measures)
    shared = sum(speed.of(t, plan, cost_s) for t in trials if COST not in t.measures)
    return alone + shared / workers


def choose_tier(
    speed: Speed, plan: Plan, claims: Sequence[Claim], workers: int, budget_s: float, cost_s: float
) -> int:
    """The largest tier that fits; the smallest when none does."""
    best = 0
    for tier in range(1, len(TIERS)):
        if duration(speed, tiered(plan, tier), claims, workers, cost_s) > USED * budget_s:
            break
        best = tier
    return best


def too_long(
    speed: Speed, plan: Plan, claims: Sequence[Claim], workers: int, budget_s: float, cost_s: float
) -> tuple[str, ...]:
    """Claims to leave out, longest first, so that the rest fits the budget; one is always measured."""
    taken = {c.key: duration(speed, plan, [c], workers, cost_s) for c in claims}
    left_out: list[str] = []
    for key in sorted(taken, key=lambda k: -taken[k])[:-1]:
        rest = [c for c in claims if c.key not in left_out]
        if duration(speed, plan, rest, workers, cost_s) <= USED * budget_s:
            break
        left_out.append(key)
    return tuple(left_out)


def seconds(text: str | float) -> float:
    """ "90", "90s", "3m" or "1h" in seconds. Raises: UsageError."""
    if isinstance(text, int | float):
        return float(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"cannot read the time {text!r}", where="--budget", next="Write 90s, 3m or 1h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
