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
