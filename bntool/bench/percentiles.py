"""Percentiles with distribution-free intervals; a tail the samples cannot carry is not shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentile:
    """One quantile of a latency. Units: seconds."""

    estimate_s: float
    low_s: float
    high_s: float


def _binomial_cdf(n: int, p: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_mass = (
        log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    return np.asarray(np.cumsum(np.exp(log_mass)))


def percentile(samples_s: Sequence[float], q: float, confidence: float = 0.95) -> Percentile | None:
    """The q-quantile with its order-statistic interval, or None where no upper bound exists for this many
    samples.

    Samples are taken as exchangeable: the interval says what this run saw, not what another process would.
    Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.
    """
    ordered = np.sort(np.asarray(samples_s, dtype=np.float64))
    n, tail = len(ordered), 0.5 * (1.0 - confidence)
    if n == 0 or 1.0 - q**n < 1.0 - tail:
        return None
    cdf = _binomial_cdf(n, q)
    low = int(np.searchsorted(cdf, tail, side="right")) - 1
    high = int(np.searchsorted(cdf, 1.0 - tail))
    if high >= n:
        return None
    return Percentile(float(np.quantile(ordered, q)), float(ordered[max(low, 0)]), float(ordered[high]))
