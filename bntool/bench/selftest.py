"""What this machine can detect now: a model timed against itself, and what its spread says about other
runs.
"""

from __future__ import annotations

from dataclasses import replace

from bntool.bench.result import Comparison
from bntool.bench.sequential import POWER, SHARED, detectable


def add_sensitivity(measured: Comparison) -> Comparison:
    """The run with notes on what it can detect, and a warning where the tolerance asks for more."""
    notes = list(measured.notes)
    for case in measured.cases:
        for pair in case.comparisons:
            size = detectable(pair.between, SHARED, 1.0 - case.run["confidence"])
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
