"""What this machine can detect now: a model timed against itself, and what its spread says about other
runs.
"""

from __future__ import annotations

import math
from dataclasses import replace

from bntool.bench.result import Comparison
from bntool.bench.sequential import SHARED
from bntool.bench.student import two_sided_quantile

#: chance that a difference of the stated size is found
POWER = 0.8


def detectable(between: float, confidence: float = 0.95) -> float:
    """Smallest relative change that a full run finds with a chance of 80 %, from the spread between
    replicates.

    (t at the last look's level + t at the power) standard errors of the mean over all planned replicates.
    Source: the usual sample-size formula, solved for the effect (Cohen 1988, section 2.5).
    """
    alpha = (1.0 - confidence) * SHARED.share[-1]
    degrees = SHARED.most - 1
    steps = two_sided_quantile(alpha, degrees) + two_sided_quantile(2.0 * (1.0 - POWER), degrees)
    return math.expm1(steps * between / math.sqrt(SHARED.most))


def add_sensitivity(measured: Comparison) -> Comparison:
    """The run with notes on what it can detect, and a warning where the tolerance asks for more."""
    notes = list(measured.notes)
    for case in measured.cases:
        for pair in case.comparisons:
            size = detectable(pair.between, case.run["confidence"])
            notes.append(
                f"{pair.name} against itself: {pair.ratio.estimate:.4f}, processes disagree by "
                f"{pair.between:.2%}. A change of {size:.1%} or more would be found in {POWER:.0%} of full "
                "runs on this machine now"
            )
            if pair.tolerance < size:
                notes.append(
                    f"the tolerance of {pair.tolerance:.1%} is below that: expect inconclusive verdicts. "
                    "Use a larger --budget, a quieter machine or a wider tolerance"
                )
    return replace(measured, notes=tuple(notes))
