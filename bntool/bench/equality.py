"""Do two models compute the same thing? Asked before anyone is called faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: unit roundoff of the dtypes a model may compute in
EPS = {"": 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
#: rounding errors add up at most linearly over layers; each layer's own sums cost a small factor
PER_OP = 8.0


@dataclass(frozen=True)
class OutputError:
    """A candidate's outputs against the baseline's. `relative` is of the largest baseline value of that
    output.
    """

    equal: bool
    absolute: float
    relative: float
    argmax_agreement: float | None
    allowed: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def allowed_error(dtype: str, ops: int | None) -> float:
    """The relative error that rounding alone explains: unit roundoff times 8 per operator on the way."""
    return EPS.get(dtype, EPS[""]) * PER_OP * max(ops or 100, 1)


def compare_outputs(
    ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]], allowed: float
) -> OutputError:
    """Compare a candidate's outputs (`ours`) with the baseline's (`theirs`), one by one."""
    shapes = [a.shape for a in ours], [a.shape for a in theirs]
    if shapes[0] != shapes[1]:
        reason = f"outputs of shapes {shapes[0]} instead of {shapes[1]}"
        return OutputError(False, math.inf, math.inf, None, allowed, reason)
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)
    ]
    absolute = max((_gap(a, b) for a, b in pairs), default=0.0)
    relative = max((_relative(a, b) for a, b in pairs), default=0.0)
    equal = bool(relative <= allowed)
    reason = (
        ""
        if equal
        else f"outputs differ by {relative:.2g} of their largest value ({allowed:.2g} is rounding)"
    )
    return OutputError(equal, absolute, relative, _argmax(pairs), allowed, reason)


def _gap(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if ours.size == 0:
        return 0.0
    same_holes = np.array_equal(np.isfinite(ours), np.isfinite(theirs))
    if not same_holes:
        return math.inf
    return float(np.max(np.abs(ours - theirs), initial=0.0, where=np.isfinite(theirs)))


def _relative(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    gap = _gap(ours, theirs)
    scale = float(np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs)))
    return gap / scale if scale > 0.0 else (0.0 if gap == 0.0 else math.inf)


def _argmax(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> float | None:
    """Share of samples whose largest class is the same, where the first output looks like class scores."""
    if not pairs or pairs[0][0].ndim != 2 or pairs[0][0].shape[1] < 2:
        return None
    return float(np.mean(pairs[0][0].argmax(1) == pairs[0][1].argmax(1)))
