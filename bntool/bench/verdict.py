"""What an interval means: faster, slower, same or inconclusive; and several comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from bntool.bench.statistics import Ratio


class Verdict(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


def decide(ratio: Ratio, tolerance: float, floor_s: float = 0.0, baseline_s: float = math.nan) -> Verdict:
    """slower: the whole interval is above 1 and the estimate above 1 + tolerance. faster: the mirror image.

    same: the whole interval lies within the tolerance either way. Anything else is inconclusive.
    A difference below `floor_s` seconds never matters, so a floor widens the tolerance of a fast model.
    """
    bound = margin(tolerance, floor_s, baseline_s)
    if not math.isfinite(ratio.estimate):
        return Verdict.INCONCLUSIVE
    if ratio.low > 1.0 and ratio.estimate > bound:
        return Verdict.SLOWER
    if ratio.high < 1.0 and ratio.estimate < 1.0 / bound:
        return Verdict.FASTER
    if ratio.low >= 1.0 / bound and ratio.high <= bound:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def margin(tolerance: float, floor_s: float, baseline_s: float) -> float:
    """The ratio above which a slowdown matters: 1 + the larger of the tolerance and the floor over the
    baseline.
    """
    relative_floor = floor_s / baseline_s if floor_s > 0 and baseline_s > 0 else 0.0
    return 1.0 + max(tolerance, relative_floor)


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level each comparison of a family is tested at, so that all false alarms together stay below
    alpha.

    The smallest p-value is tested at alpha/m, the next at alpha/(m-1), ...; from the first that fails on,
    the level stays. An interval at 1 - level excludes "no difference" exactly when Holm rejects it.
    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    levels = [alpha] * len(p_values)
    level = alpha
    failed = False
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = level if failed else alpha / (len(p_values) - rank)
        failed = failed or p_values[index] > level
        levels[index] = level
    return levels
