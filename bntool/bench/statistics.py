"""From paired samples to a ratio with an interval. Pure NumPy: no clock, no process, no model.

A replicate (one fresh worker process) gives one number: the median over its rounds of the log of candidate
over baseline. Rounds are close in time, so what the machine does to both cancels; what a process draws for
as long as it lives (heap layout, page placement) does not, and differs between replicates. So the interval
is Student's over the replicates' numbers: it counts the variation between processes and, as each number
carries its own noise, the variation within one. A bootstrap over four or five replicates would be too
narrow: see tests/bench.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bntool.bench.student import two_sided_p, two_sided_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """Candidate over baseline: above 1 is slower. `confidence` is the interval's, after every correction."""

    estimate: float
    low: float
    high: float
    confidence: float
    p_value: float

    @property
    def half_width(self) -> float:
        """Half the interval on the log scale: 0.02 reads as +-2 %."""
        return 0.5 * math.log(self.high / self.low) if self.low > 0 else math.inf


def log_ratios(candidate_s: Array, baseline_s: Array) -> Array:
    """log(candidate / baseline), round by round.

    Shapes: both (rounds,), in the same order.
    """
    return np.log(np.asarray(candidate_s, dtype=np.float64)) - np.log(
        np.asarray(baseline_s, dtype=np.float64)
    )


def center(pairs: Array) -> float:
    """One replicate's number: the median, which a few disturbed rounds cannot move."""
    return float(np.median(pairs))


def blocks(pairs: Array, count: int = 10) -> list[Array]:
    """Cut one process's rounds into `count` runs of neighbours: batch means, for when there is only one
    process.

    Source: Law, Simulation Modeling and Analysis, 5th ed., section 9.5.3 (batch means under
    autocorrelation).
    """
    return [part for part in np.array_split(np.asarray(pairs), min(count, len(pairs))) if len(part)]


def interval(centers: Sequence[float], alpha: float) -> Ratio:
    """Student's interval at level 1 - alpha over replicates, and the p-value of "no difference".

    Shapes: centers (replicates,), log scale. With fewer than two replicates the interval is everything.
    """
    values = np.asarray(centers, dtype=np.float64)
    if len(values) < 2:
        estimate = math.exp(float(values[0])) if len(values) else math.nan
        return Ratio(estimate, 0.0, math.inf, 1.0 - alpha, 1.0)
    middle, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = two_sided_quantile(alpha, len(values) - 1) * error
    return Ratio(
        math.exp(middle), math.exp(middle - half), _exp(middle + half), 1.0 - alpha, _p(middle, error, values)
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700.0 else math.inf


def _p(middle: float, error: float, values: Array) -> float:
    if error == 0.0:
        return 1.0 if middle == 0.0 else 0.0
    return two_sided_p(middle / error, len(values) - 1)


def spread(groups: Sequence[Array]) -> tuple[float, float]:
    """(standard deviation between replicates, typical standard error within one), both on the log scale.

    The first is what fresh processes disagree by; the second is what more rounds would shrink.
    """
    centers = [center(g) for g in groups]
    between = float(np.std(centers, ddof=1)) if len(centers) > 1 else math.nan
    return between, float(np.median([median_error(g) for g in groups])) if groups else math.nan


def median_error(values: Array) -> float:
    """Standard error of a median from the median absolute deviation (normal consistency, 1.2533 =
    sqrt(pi/2)).
    """
    values = np.asarray(values)
    mad = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 1.2533 * mad / math.sqrt(len(values))
