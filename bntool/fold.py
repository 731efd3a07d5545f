"""Fold: every norm that can go is absorbed, exactly, by its neighbours; a reason for every one that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.errors import UsageError
from bntool.plan import Plan, make_plan
from bntool.progress import Progress, silent
from bntool.report.folds import report_of
from bntool.report.merges import with_merged
from bntool.result import FoldReport, Result
from bntool.sources.kinds import kind_of
from bntool.sources.opening import load

if TYPE_CHECKING:  # an ONNX model is folded without importing torch
    from torch import nn

    from bntool.fold_job import Job
    from bntool.graphs.fx_modules import FxGraph


def fold(
    model: Any,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    form: str = "module",
    merge: bool = False,
    split: bool = False,
    pad_values: bool = False,
    verify: bool = True,
    progress: Progress = silent,
) -> Result[Any, FoldReport]:
    """A copy of `model` that computes the same with as few norms as possible, and what became of each.

    `model` is a module, a torch.export program, an ONNX model (onnx or onnx_ir), or a reference to one.
    `keep` are globs over the norms' qualified names that stay. `form="module"` gives back the same class,
    `form="graph"` a torch.fx.GraphModule, in which functional norms fold too, parallel branches `merge` into
    one layer, shared layers `split` so that each call can take its own norm, and with `pad_values` a norm
    passes zero padding, which then pads with other values. Programs and ONNX models are graphs already: they
    `merge` as they are. With `verify` and example inputs both models are run and compared.

    Raises: UsageError for a `form` that does not exist, VerificationError when the outputs differ.
    """
    if form not in ("module", "graph"):
        raise UsageError(f"there is no form {form!r}", where="form", next="Use 'module' or 'graph'.")
    model = load(str(model)) if isinstance(model, str | Path) else model
    if pad_values and kind_of(model) != "module":
        advice = "Fold the module it was exported from with form='graph', then export that."
        raise UsageError("exported files keep their padding", where="pad_values", next=advice)
    if kind_of(model) == "onnx":
        from bntool.fold_onnx import fold_model, shapes_of

        shapes = shapes_of(example_inputs)
        return fold_model(model, keep=keep, merge=merge, verify=verify, shapes=shapes, progress=progress)
    if kind_of(model) == "program":
        if split:
            raise UsageError(
                "a torch.export program folds without splitting shared layers",
                where="split",
                next="Split the module it was exported from with form='graph', then export that.",
            )
        from bntool.fold_exported import fold_program

        return fold_program(model, example_inputs, keep=keep, merge=merge, verify=verify, progress=progress)
    if form == "module" and (merge or split or pad_values):
        what = "merge" if merge else "split" if split else "pad_values"
        raise UsageError("modules alone cannot express it", where=what, next="Add form='graph'.")
    if form == "graph":
        return _fold_graph(model, example_inputs, keep, merge, split, pad_values, verify, progress)
    return _fold_module(model, example_inputs, keep, verify, progress)


def _fold_graph(
    model: nn.Module,
    example_inputs: Any,
    keep: Sequence[str],
    merge: bool,
    split: bool,
    pad_values: bool,
    verify: bool,
    progress: Progress,
) -> Result[Any, FoldReport]:
    from bntool.fold_graph import finish, graph_form
    from bntool.fold_job import Job

    progress("fold", 0, 2)
    arguments = call_arguments(example_inputs)
    prepared = graph_form(model, arguments, keep=keep, merge=merge, split=split, pad_values=pad_values)
    job = Job(prepared.model, arguments, tuple(keep), in_place=True)
    job.run()
    prepared = finish(prepared, arguments, keep=keep, merge=merge)
    progress("fold", 1, 2)
    verification = None
    if verify and example_inputs is not None:
        verification = checked(model, prepared.model, example_inputs)
    progress("fold", 2, 2)
    notes = [*job.graph.notes, *prepared.notes]
    report = report_of(job.plan, job.graph, notes=notes, verification=verification)
    return Result(prepared.model, with_merged(report, prepared.merged))


def _fold_module(
    model: nn.Module, example_inputs: Any, keep: Sequence[str], verify: bool, progress: Progress
) -> Result[Any, FoldReport]:
    from bntool.fold_job import Job, collector_paused

    progress("fold", 0, 2)
    job = Job(model, call_arguments(example_inputs), tuple(keep))
    with collector_paused():
        folded = job.run()
        report = report_of(job.plan, job.graph, notes=job.graph.notes, macs=verify)
    progress("fold", 1, 2)
    if verify and example_inputs is not None and job.plan.steps:
        report = replace(report, verification=_checked_module(job, folded, example_inputs))
    progress("fold", 2, 2)
    return Result(folded, report)


def _checked_module(job: Job, folded: nn.Module, example_inputs: Any) -> Any:
    """Raises: VerificationError that names the norm."""
    from bntool.fold_job import culprit
    from bntool.verify import verify

    outcome = verify(job.model, folded, example_inputs)
    if not outcome.ok:
        name = culprit(job, example_inputs)
        outcome.insist(where=name, next=f"Nothing is returned; fold with keep=[{name!r}].")
    return outcome


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
    from bntool.fold_job import Job, collector_paused

    progress("fold", 0, 1)
    job = Job(model, call_arguments(example_inputs), tuple(keep), in_place=True)
    with collector_paused():
        job.run()
        report = report_of(job.plan, job.graph, notes=job.graph.notes, macs=False)
    progress("fold", 1, 1)
    return Result(model, report)


def plan_of(
    model: nn.Module, example_inputs: Any = None, *, keep: Sequence[str] = ()
) -> tuple[Plan, FxGraph]:
    from bntool.graphs.islands import module_graph

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
