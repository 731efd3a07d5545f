"""When to stop: a few planned looks, each paid for out of one error budget.

Looking after every replicate and stopping at the first interval that excludes 1 would raise false alarms
several times as often as the level says. Here look k uses the level `alpha * share[k]`; the shares sum to
one, so the chance that any look's interval misses the truth is at most alpha, whatever made the run stop:
precision, a decision, or the budget. (Repeated confidence intervals, with the union bound in place of a
joint distribution, because Student's t on few replicates has no handy one.)
Source: Jennison and Turnbull, Group Sequential Methods, 1999, chapter 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bntool.bench.statistics import Ratio, interval
from bntool.bench.student import two_sided_quantile

#: chance that a difference of the stated size is found
POWER = 0.8


@dataclass(frozen=True)
class Looks:
    """After how many replicates the data are looked at, and the share of alpha each look may spend."""

    replicates: tuple[int, ...]
    share: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.replicates) == len(self.share)
        assert abs(sum(self.share) - 1.0) < 1e-9
        assert all(a < b for a, b in zip(self.replicates, self.replicates[1:], strict=False))

    @property
    def most(self) -> int:
        return self.replicates[-1]


#: candidates share a process: between-process luck is small
SHARED = Looks((4, 6, 9), (0.2, 0.3, 0.5))
#: each side has its own process: luck no longer cancels, so more of them
APART = Looks((6, 9, 14), (0.2, 0.3, 0.5))


def fixed(replicates: int) -> Looks:
    """One look, at the end: the whole of alpha is spent there."""
    return Looks((replicates,), (1.0,))


@dataclass(frozen=True)
class Look:
    """What one look saw. `p_value` is adjusted so that comparing it with alpha spends only this look's
    share.
    """

    index: int
    ratio: Ratio


def look_at(centers: Sequence[float], looks: Looks, index: int, alpha: float) -> Look:
    """The interval of look `index`, at its own level.

    Shapes: centers (replicates so far,), log scale.
    """
    share = looks.share[index]
    raw = interval(centers, alpha * share)
    p_value = min(1.0, raw.p_value / share)
    return Look(index, Ratio(raw.estimate, raw.low, raw.high, raw.confidence, p_value))


def detectable(between: float, looks: Looks, alpha: float) -> float:
    """Smallest relative change that a full run finds with a chance of 80 %, from the spread of replicates.

    (t at the last look's level + t at the power) standard errors of the mean over all planned replicates.
    Source: the usual sample-size formula, solved for the effect (Cohen 1988, section 2.5).
    """
    degrees = max(1, looks.most - 1)
    level, power = alpha * looks.share[-1], 2.0 * (1.0 - POWER)
    steps = two_sided_quantile(level, degrees) + two_sided_quantile(power, degrees)
    return math.expm1(steps * between / math.sqrt(looks.most))
