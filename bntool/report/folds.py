"""A plan as the report that a fold gives: one entry per norm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

from bntool.algebra.affine import ChannelAffine
from bntool.algebra.linear import out_channels
from bntool.graphs.base import Graph
from bntool.plan import Norm, Plan, Step
from bntool.result import FoldEntry, FoldReport
from bntool.rewriting import adds_bias
from bntool.search import Absorb

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Seen(Graph, Protocol):
    """A graph that also says what of the model it does not show."""

    notes: list[str]

    def left_out(self) -> list[tuple[str, str]]:
        """Norms that are no node of it, each with the reason."""


def report_of(
    plan: Plan,
    graph: Seen | None = None,
    *,
    notes: Sequence[str] | None = None,
    verification: Any = None,
    macs: bool = True,
) -> FoldReport:
    """What became of every norm; `graph` adds those the plan never met, and what a norm costs.

    Counting MACs works out the sizes of every value: a tenth of the time of a fold.
    """
    biased = {id(c.node.owner) for c in plan.changes.values() if adds_bias(c)}
    folded = [entry for step in plan.steps for entry in _folded(step, graph if macs else None, biased)]
    kept = [entry for norm, reason in plan.kept for entry in _kept(norm, reason)]
    if graph is not None:
        kept += [FoldEntry(name, reason=reason) for name, reason in graph.left_out()]
        notes = graph.notes if notes is None else notes
    return FoldReport(len(folded) + len(kept), folded, kept, verification, list(notes or ()))


def _folded(step: Step, graph: Seen | None, biased: set[int]) -> list[FoldEntry]:
    """`biased` are the owners that get a bias, each counted with the first norm that goes there."""
    low, high = _range(step.norm)
    params = step.norm.calls[0].params
    added = sum(_new_bias(a, biased) for a in step.absorbed)
    learned = sum(prod(params[name].shape) for name in ("weight", "bias") if name in params)
    width = max((BYTES.get(p.dtype, 4) for p in params.values()), default=4)
    size = sum(prod(p.shape) for p in params.values()) * width
    figures = (learned - added, _macs(step.norm, graph), size - added * width)
    return [FoldEntry(name, step.into, step.side, "", low, high, *figures) for name in step.norm.names]


def _new_bias(absorb: Absorb, biased: set[int]) -> int:
    owner, node = id(absorb.node.owner), absorb.node
    if owner not in biased:
        return 0
    biased.discard(owner)
    return out_channels(node.kind, node.params["weight"].shape, node.attrs)


def _macs(norm: Norm, graph: Seen | None) -> int | None:
    """One multiply-add for every element, over all calls."""
    sizes = [graph.shape(call) for call in norm.calls] if graph is not None else [None]
    return None if None in sizes else sum(prod(s) for s in sizes if s is not None)


def _kept(norm: Norm, reason: str) -> list[FoldEntry]:
    low, high = _range(norm)
    return [FoldEntry(name, reason=reason, scale_min=low, scale_max=high) for name in norm.names]


def _range(norm: Norm) -> tuple[float | None, float | None]:
    if not isinstance(norm.map, ChannelAffine) or not norm.map.scale.size:
        return None, None
    return float(norm.map.scale.min()), float(norm.map.scale.max())
