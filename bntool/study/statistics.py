"""Intervals for paired differences over seeds, and for single accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bntool.bench.student import two_sided_quantile


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval at `level`, from `n` pairs."""

    estimate: float
    low: float
    high: float
    n: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def widened(self, by: float) -> Interval:
        """The interval when a single value is only known to within `by` (a grid's spacing)."""
        return Interval(self.estimate, self.low - by, self.high + by, self.n, self.level)


def paired_t(differences: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t * s / sqrt(n) over seeds; with fewer than two pairs nothing is known.

    Shapes: differences (seeds,), treated minus baseline for one seed each.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        estimate = float(values.mean()) if len(values) else math.nan
        return Interval(estimate, -math.inf, math.inf, len(values), level)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = two_sided_quantile(1.0 - level, len(values) - 1) * error
    middle = float(values.mean())
    return Interval(middle, middle - half, middle + half, len(values), level)


def bootstrap(
    differences: Sequence[float], level: float = 0.95, *, draws: int = 4000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over seeds: no assumption of a shape, but too narrow below ten
    seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return paired_t(differences, level)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    means = values[picks].mean(1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(values.mean()), float(low), float(high), len(values), level)


def normal_quantile(p: float) -> float:
    """z with P(Z <= z) = p, by bisection of the error function."""
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < p
        low, high = (middle, high) if below else (low, middle)
    return 0.5 * (low + high)


def wilson(share: float, n: int, level: float = 0.95) -> Interval:
    """Interval for an accuracy measured on `n` examples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, level)
    z2 = normal_quantile(0.5 + level / 2.0) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, middle - half, middle + half, n, level)
