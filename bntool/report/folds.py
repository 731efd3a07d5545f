"""A plan as the report that a fold gives: one entry per norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bntool.algebra.affine import ChannelAffine
from bntool.plan import Norm, Plan, Step
from bntool.result import FoldEntry, FoldReport


def report_of(plan: Plan, *, notes: Sequence[str] = (), verification: Any = None) -> FoldReport:
    folded = [entry for step in plan.steps for entry in _folded(step)]
    kept = [entry for norm, reason in plan.kept for entry in _kept(norm, reason)]
    return FoldReport(len(folded) + len(kept), folded, kept, verification, list(notes))


def _folded(step: Step) -> list[FoldEntry]:
    low, high = _range(step.norm)
    return [FoldEntry(name, step.into, step.side, "", low, high) for name in step.norm.names]


def _kept(norm: Norm, reason: str) -> list[FoldEntry]:
    low, high = _range(norm)
    return [FoldEntry(name, reason=reason, scale_min=low, scale_max=high) for name in norm.names]


def _range(norm: Norm) -> tuple[float | None, float | None]:
    if not isinstance(norm.map, ChannelAffine) or not norm.map.scale.size:
        return None, None
    return float(norm.map.scale.min()), float(norm.map.scale.max())
