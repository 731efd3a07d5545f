"""Do two models compute the same thing? Asked before anyone is called faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.report.agreement import compare_all, tolerance_for

#: distance from 1 to the next number, of the dtypes a model may compute in
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class OutputError:
    """A candidate's outputs against the baseline's. `relative` is of the largest baseline value."""

    equal: bool
    absolute: float
    relative: float
    argmax_agreement: float | None
    allowed: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def allowed_error(dtypes: Sequence[str], layers: int) -> float:
    """What rounding alone explains, in the coarsest of these dtypes.

    Without an upper end: runtimes round at other places, and a model that is slower than another is not
    kept from being timed because of it.
    """
    eps = max(EPS.get(d or "float32", EPS["float32"]) for d in dtypes)
    return tolerance_for(eps, layers, most=math.inf)


@dataclass(frozen=True)
class Answer:
    """What a model gave back. `why` says why there is nothing to compare, `repeats` whether a second call
    gave exactly the same.
    """

    names: tuple[str, ...] = ()
    arrays: tuple[NDArray[Any], ...] = ()
    why: str = ""
    repeats: bool = True

    def in_order_of(self, other: Answer) -> tuple[NDArray[Any], ...]:
        """The arrays by the other's names, where both have the same ones: dicts may differ in order."""
        if self.names == other.names or sorted(self.names) != sorted(other.names):
            return self.arrays
        by_name = dict(zip(self.names, self.arrays, strict=True))
        return tuple(by_name[name] for name in other.names)


def compare_outputs(baseline: Answer, other: Answer, allowed: float) -> OutputError:
    """Compare all outputs; the worst of them decides. What cannot be compared counts as different."""
    reference, candidate = baseline.arrays, other.in_order_of(baseline)
    reason = incomparable(baseline, other) or misshapen(reference, candidate)
    if reason:
        return OutputError(False, math.inf, math.inf, None, allowed, reason)
    seen = compare_all(baseline.names, reference, candidate)
    if any(a.non_finite for a in seen):
        return OutputError(False, math.inf, math.inf, None, allowed, "inf or NaN where the baseline has none")
    relative = max(a.max_rel for a in seen)
    reason = f"outputs differ by {relative:.2g} of their largest value; rounding explains {allowed:.2g}"
    if not (baseline.repeats and other.repeats):
        reason += " (they also change from call to call)"
    absolute, argmax = max(a.max_abs for a in seen), seen[0].argmax_agreement
    equal = relative <= allowed
    return OutputError(equal, absolute, relative, argmax, allowed, "" if equal else reason)


def incomparable(baseline: Answer, other: Answer) -> str:
    """Why these say nothing about each other, or "". A baseline of NaN would agree with every NaN."""
    why = baseline.why or other.why
    if why or not baseline.arrays:
        return f"outputs cannot be compared ({why or 'the baseline gives none'})"
    floats = [a for a in baseline.arrays if np.issubdtype(a.dtype, np.inexact)]
    if any(np.isnan(a).any() for a in floats):
        return "outputs cannot be compared (the baseline's hold NaN)"
    if any(a.size and not np.isfinite(a).any() for a in floats):
        return "outputs cannot be compared (the baseline's are all infinite)"
    return ""


def misshapen(reference: Sequence[NDArray[Any]], candidate: Sequence[NDArray[Any]]) -> str:
    shapes = [a.shape for a in reference], [a.shape for a in candidate]
    return "" if shapes[0] == shapes[1] else f"outputs of shapes {shapes[1]} instead of {shapes[0]}"
