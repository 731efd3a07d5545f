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
    """What rounding alone explains, in the coarsest of these dtypes."""
    return tolerance_for(max(EPS.get(d or "float32", EPS["float32"]) for d in dtypes), layers)


def compare_outputs(
    reference: Sequence[NDArray[Any]], candidate: Sequence[NDArray[Any]], allowed: float
) -> OutputError:
    """Compare all outputs, in order; the worst of them decides."""
    shapes = [a.shape for a in reference], [a.shape for a in candidate]
    if shapes[0] != shapes[1]:
        reason = f"outputs of shapes {shapes[1]} instead of {shapes[0]}"
        return OutputError(False, math.inf, math.inf, None, allowed, reason)
    seen = compare_all([str(i) for i in range(len(reference))], reference, candidate)
    absolute = max((a.max_abs for a in seen), default=0.0)
    relative = max((a.max_rel for a in seen), default=0.0)
    if any(a.non_finite for a in seen):
        return OutputError(False, math.inf, math.inf, None, allowed, "inf or NaN where the baseline has none")
    reason = f"outputs differ by {relative:.2g} of their largest value; rounding explains {allowed:.2g}"
    equal = relative <= allowed
    argmax = seen[0].argmax_agreement if seen else None
    return OutputError(equal, absolute, relative, argmax, allowed, "" if equal else reason)


def dtype_of(outputs: Sequence[NDArray[Any]], declared: str) -> str:
    """The dtype the model computes in: as asked for, else its first floating output's."""
    floating = [str(a.dtype) for a in outputs if np.issubdtype(a.dtype, np.floating)]
    return declared or (floating[0] if floating else "float32")
