"""Fold: every norm that can go is absorbed, exactly, by its neighbours; a reason for every one that stays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import nn

from bntool.algebra.affine import ChannelAffine
from bntool.errors import UsageError
from bntool.fold_module import OutOfRange, fold_here, folded_copy
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.islands import module_graph
from bntool.plan import Norm, Plan, Step, make_plan
from bntool.progress import Progress, silent
from bntool.result import FoldEntry, FoldReport, Result


def fold(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    form: str = "module",
    verify: bool = True,
    progress: Progress = silent,
) -> Result[nn.Module, FoldReport]:
    """A copy of `model` that computes the same with as few norms as possible, and what became of each.

    `keep` are globs over the norms' qualified names that stay. `form="module"` gives back the same class,
    `form="graph"` a torch.fx.GraphModule. With `verify` and example inputs both models are run and compared.

    Raises: UsageError for a `form` that does not exist, VerificationError when the outputs differ.
    """
    if form not in ("module", "graph"):
        raise UsageError(f"there is no form {form!r}", where="form", next="Use 'module' or 'graph'.")
    progress("fold", 0, 2)
    graph = module_graph(model, call_arguments(example_inputs))
    folded, plan = _carried_out(graph, keep, lambda plan: folded_copy(model, plan))
    progress("fold", 1, 2)
    verification = checked(model, folded, example_inputs) if verify and example_inputs is not None else None
    progress("fold", 2, 2)
    return Result(folded, report_of(plan, graph, verification))


def fold_(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    progress: Progress = silent,
) -> Result[nn.Module, FoldReport]:
    """Fold in place: no copy of the model is made, so nothing can be compared with the original.

    Takes little more memory than the largest weights that change.
    """
    progress("fold", 0, 1)
    graph = module_graph(model, call_arguments(example_inputs))
    _, plan = _carried_out(graph, keep, lambda plan: fold_here(model, plan))
    progress("fold", 1, 1)
    return Result(model, report_of(plan, graph))


T = TypeVar("T")


def _carried_out(graph: FxGraph, keep: Sequence[str], work: Callable[[Plan], T]) -> tuple[T, Plan]:
    """Plan and do it; where a new value would leave its dtype's range, plan again without that owner."""
    barred: dict[Hashable, str] = {}
    while True:
        plan = make_plan(graph, keep=keep, barred=barred)
        try:
            return work(plan), plan
        except OutOfRange as problem:
            barred[problem.owner] = problem.reason


def plan_of(
    model: nn.Module, example_inputs: Any = None, *, keep: Sequence[str] = ()
) -> tuple[Plan, FxGraph]:
    graph = module_graph(model, call_arguments(example_inputs))
    return make_plan(graph, keep=keep), graph


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """(args, kwargs) for the model: a tuple or list is several arguments, a dict is keywords."""
    if example_inputs is None:
        return None
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def checked(model: nn.Module, folded: nn.Module, example_inputs: Any) -> Any:
    from bntool.verify import verify

    outcome = verify(model, folded, example_inputs)
    outcome.insist()
    return outcome


def report_of(plan: Plan, graph: FxGraph, verification: Any = None) -> FoldReport:
    folded = [entry for step in plan.steps for entry in _folded(step)]
    kept = [entry for norm, reason in plan.kept for entry in _kept(norm, reason)]
    return FoldReport(
        found=len(folded) + len(kept),
        folded=folded,
        kept=kept,
        verification=verification,
        notes=list(graph.notes),
    )


def _folded(step: Step) -> list[FoldEntry]:
    low, high = _range(step.norm)
    return [FoldEntry(name, step.into, step.side, "", low, high) for name in step.norm.names]


def _kept(norm: Norm, reason: str) -> list[FoldEntry]:
    low, high = _range(norm)
    return [FoldEntry(name, reason=reason, scale_min=low, scale_max=high) for name in norm.names]


def _range(norm: Norm) -> tuple[float | None, float | None]:
    if not isinstance(norm.map, ChannelAffine) or not norm.map.scale.size:
        return None, None
    return float(np.min(norm.map.scale)), float(np.max(norm.map.scale))
