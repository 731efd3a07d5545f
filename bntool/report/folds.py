"""A plan as the report that a fold gives: one entry per norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bntool.algebra.absorbing import PADDED
from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.globs import matches
from bntool.graphs.base import Graph
from bntool.plan import Norm, Plan, Step
from bntool.report.savings import Grown, Savings, new_biases
from bntool.result import FoldEntry, FoldReport
from bntool.search import place

#: what a reader can do about some reasons
ADVICE = {PADDED.reason: f"{PADDED.reason}; --pad-values may pad with other values"}
EXPORTED = {PADDED.reason: f"{PADDED.reason}; --pad-values may help with the module, before its export"}


class Seen(Graph, Protocol):
    """A graph that also says what of the model it does not show."""

    def left_out(self) -> list[tuple[str, str]]:
        """Norms that are no node of it, each with the reason."""


def report_of(
    plan: Plan,
    graph: Seen,
    *,
    notes: Sequence[str] = (),
    keep: Sequence[str] = (),
    verification: Any = None,
    macs: bool = True,
    grown: Grown | None = None,
    advice: Mapping[str, str] = ADVICE,
) -> FoldReport:
    """What became of every norm and what it saves; `graph` adds those the plan never met.

    `keep` are the globs that the plan was made with. `advice` says of parts of reasons what to write instead.
    `grown` is what layers hold more than before, where that is more than new biases. Counting MACs works out
    the sizes of every value: a tenth of the time of a fold.
    """
    savings = Savings(plan, graph, new_biases(plan) if grown is None else grown)
    folded = [entry for step in plan.steps for entry in _folded(step, savings, macs)]
    kept = [entry for norm, reason in plan.kept for entry in _kept(norm, _advised(reason, advice))]
    kept += [FoldEntry(name, reason=reason) for name, reason in graph.left_out()]
    notes = [*notes, *_unmet(keep, kept)]
    return FoldReport(len(folded) + len(kept), folded, kept, verification, notes)


def _unmet(keep: Sequence[str], kept: Sequence[FoldEntry]) -> list[str]:
    """A note on every glob that keeps nothing: with a slip in it, a norm goes that was to stay."""
    idle = [glob for glob in keep if not any(matches(entry.name, [glob]) for entry in kept)]
    return [f"no norm is named {glob!r}, which was to be kept" for glob in idle]


def _folded(step: Step, savings: Savings, macs: bool) -> list[FoldEntry]:
    """One entry for every name; what they share is counted with the first."""
    low, high = scale_range(step.norm.map)
    entries, saved = [], savings.of(step)
    for name in step.norm.names:
        calls = [call for call in step.norm.calls if place(call) == name]
        figures = (saved[0], savings.macs(calls) if macs else None, saved[1])
        entries.append(FoldEntry(name, step.into, step.side, "", low, high, *figures))
        saved = (0, 0)
    return entries


def _kept(norm: Norm, reason: str) -> list[FoldEntry]:
    low, high = scale_range(norm.map)
    return [FoldEntry(name, reason=reason, scale_min=low, scale_max=high) for name in norm.names]


def _advised(reason: str, advice: Mapping[str, str]) -> str:
    for part, more in advice.items():
        reason = reason.replace(part, more)
    return reason


def scale_range(own: ChannelAffine | Blocked) -> tuple[float | None, float | None]:
    """(least, greatest) over the channels of a norm; None where it has no map."""
    if not isinstance(own, ChannelAffine) or not own.scale.size:
        return None, None
    return float(own.scale.min()), float(own.scale.max())
