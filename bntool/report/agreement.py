"""How far two results are apart: figures a person can act on, never a sum of differences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: rounding steps that a layer may add, relative to the largest value of an output
STEPS_PER_LAYER = 32
#: a tolerance above this does not tell a wrong model from a right one, however coarse and deep they are
MOST = 0.01


def tolerance_for(eps: float, depth: int, most: float = MOST) -> float:
    """Relative error that rounding explains: `eps * 32 * layers`, and no more than `most` (or two steps).

    Each linear layer rounds products and their sum: a few eps a layer on random networks, so 32 leaves
    room for long sums while a weight that is 1 % off stays far outside. In half precision that would be 3 %
    a layer; rounding errors cancel, and what was measured on right folds is 0.1 % at 8 layers and at 68
    (float16; bfloat16 1 %).
    """
    return min(eps * STEPS_PER_LAYER * max(1, depth), max(most, 2 * eps))


@dataclass(frozen=True)
class Agreement:
    """One output of two models on one input.

    Units: `max_abs` in the output's own; `max_rel` is the largest difference over the largest reference
    value; `smallest_tolerance` is the t that `allclose(rtol=t, atol=t)` would need; `argmax_agreement` the
    share of rows with the largest entry in the same place; `non_finite` counts places where one is inf or NaN
    and the other is not.
    """

    output: str
    max_abs: float
    max_rel: float
    smallest_tolerance: float
    argmax_agreement: float | None
    non_finite: int

    def within(self, tolerance: float) -> bool:
        return self.non_finite == 0 and self.max_rel <= tolerance

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, reference: NDArray[Any], candidate: NDArray[Any]) -> Agreement:
    """`candidate` against `reference`; a different shape counts as every value being non-finite.

    Shapes: any, both the same; scores for `argmax_agreement` lie on the last axis (on axis 1 from 4-d on).
    """
    if reference.shape != candidate.shape:
        return Agreement(name, np.inf, np.inf, np.inf, None, max(reference.size, candidate.size, 1))
    a, b = (np.asarray(v).astype(np.float64) for v in (reference, candidate))
    same_kind = np.where(np.isfinite(a), np.isfinite(b), (a == b) | (np.isnan(a) & np.isnan(b)))
    finite = np.isfinite(a) & np.isfinite(b)
    gap = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0))
    size = np.abs(np.where(finite, a, 0))
    return Agreement(
        output=name,
        max_abs=float(gap.max(initial=0.0)),
        max_rel=_ratio(float(gap.max(initial=0.0)), float(size.max(initial=0.0))),
        smallest_tolerance=float((gap / (1 + size)).max(initial=0.0)),
        argmax_agreement=_argmax_agreement(a, b),
        non_finite=int((~same_kind).sum()),
    )


def _ratio(gap: float, size: float) -> float:
    if gap == 0:
        return 0.0
    return gap / size if size else float("inf")


def _argmax_agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    axis = 1 if a.ndim >= 4 else -1
    if a.ndim < 2 or a.size == 0 or a.shape[axis] < 2:
        return None
    return float((a.argmax(axis) == b.argmax(axis)).mean())


def compare_all(
    names: Iterable[str], references: Iterable[NDArray[Any]], candidates: Iterable[NDArray[Any]]
) -> tuple[Agreement, ...]:
    """One Agreement per output, in order."""
    return tuple(compare(n, a, b) for n, a, b in zip(names, references, candidates, strict=True))
