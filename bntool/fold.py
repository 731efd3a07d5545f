"""Fold: every norm that can go is absorbed, exactly, by its neighbours; a reason for every one that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.blame import Refold, checked
from bntool.errors import UsageError
from bntool.globs import listed
from bntool.progress import Progress, silent
from bntool.refused import refuse_others
from bntool.report.folds import ADVICE, report_of
from bntool.report.merges import norms_of, with_merged
from bntool.result import FoldReport, Result
from bntool.sources.kinds import kind_of
from bntool.sources.opening import given_module, load

if TYPE_CHECKING:  # an ONNX model is folded without importing torch
    from torch import nn


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
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Result[Any, FoldReport]:
    """A copy of `model` that computes the same with as few norms as possible, and what became of each.

    `model` is a module, a torch.export program, an ONNX model (onnx or onnx_ir), or a reference to one.
    `keep` are globs over the norms' qualified names that stay. `form="module"` gives back the same class,
    `form="graph"` a torch.fx.GraphModule, in which functional norms fold too, parallel branches `merge` into
    one layer, shared layers and tied weights `split` so that each call can take its own norm, and with
    `pad_values` a norm passes zero padding, which then pads with other values. Programs and ONNX models are
    graphs already: they `merge` as they are. With `verify` and example inputs both models are run and
    compared, to `tolerance` or what rounding allows.

    Raises: UsageError for a `form` that does not exist, VerificationError that names the norm to blame when
    the outputs differ.
    """
    if form not in ("module", "graph"):
        raise UsageError(f"there is no form {form!r}", where="form", next="Use 'module' or 'graph'.")
    model = load(str(model)) if isinstance(model, str | Path) else model
    keep, kind = listed(keep), kind_of(model)
    refuse_others(kind, {"split": split, "pad_values": pad_values})
    if kind == "onnx":
        from bntool.fold_onnx import fold_model, shapes_of

        return fold_model(
            model,
            keep=keep,
            merge=merge,
            verify=verify,
            tolerance=tolerance,
            shapes=shapes_of(example_inputs),
            progress=progress,
        )
    if kind == "program":
        from bntool.fold_exported import fold_program

        return fold_program(
            model,
            example_inputs,
            keep=keep,
            merge=merge,
            verify=verify,
            tolerance=tolerance,
            progress=progress,
        )
    if form == "module" and (merge or split or pad_values):
        what = "merge" if merge else "split" if split else "pad_values"
        raise UsageError("modules alone cannot express it", where=what, next="Add form='graph'.")
    check = _Check(verify, tolerance)
    if form == "graph":
        options = {"merge": merge, "split": split, "pad_values": pad_values}
        return _fold_graph(model, example_inputs, keep, options, check, progress)
    return _fold_module(model, example_inputs, keep, check, progress)


def _fold_graph(
    model: nn.Module,
    example_inputs: Any,
    keep: tuple[str, ...],
    options: dict[str, bool],
    check: _Check,
    progress: Progress,
) -> Result[Any, FoldReport]:
    from bntool.fold_graph import folded_graph, grown

    progress("fold", 0, 2)
    arguments = call_arguments(example_inputs)

    def folded(more: tuple[str, ...]) -> Any:
        return folded_graph(model, arguments, (*keep, *more), **options)

    form, job = folded(())
    progress("fold", 1, 2)
    names = [*norms_of(form.merged), *job.plan.names]
    verification = check(model, form.model, example_inputs, names, lambda more: folded(more)[0].model)
    progress("fold", 2, 2)
    notes = [*job.graph.notes, *form.notes]
    advice = {} if options["pad_values"] else ADVICE
    report = report_of(
        job.plan,
        job.graph,
        notes=notes,
        keep=keep,
        verification=verification,
        grown=grown(form, job),
        advice=advice,
    )
    folded_before = [replace(e, macs_saved=form.padded.get(e.name, e.macs_saved)) for e in report.folded]
    return Result(form.model, with_merged(replace(report, folded=folded_before), form.merged))


def _fold_module(
    model: nn.Module, example_inputs: Any, keep: tuple[str, ...], check: _Check, progress: Progress
) -> Result[Any, FoldReport]:
    from bntool.edits import plan_of
    from bntool.fold_job import Job, collector_paused

    progress("fold", 0, 2)
    job = Job(model, call_arguments(example_inputs), keep)
    with collector_paused():
        folded = job.run()
        report = report_of(job.plan, job.graph, notes=job.graph.notes, keep=keep, macs=check.wanted)
        report = replace(report, plan=plan_of(folded))
    progress("fold", 1, 2)
    if job.plan.steps:

        def refold(more: tuple[str, ...]) -> nn.Module:
            return Job(job.model, job.inputs, (*keep, *more)).run()

        found = check(job.model, folded, example_inputs, job.plan.names, refold)
        report = replace(report, verification=found)
    else:
        check.insist_that_it_runs(job.model, example_inputs)
    progress("fold", 2, 2)
    return Result(folded, report)


@dataclass(frozen=True)
class _Check:
    """How a fold is verified, if it is `wanted`."""

    wanted: bool
    tolerance: float | None

    def __call__(self, model: Any, folded: Any, inputs: Any, names: list[str], refold: Refold) -> Any:
        """None without inputs. Raises: VerificationError that names the norm."""
        if not self.wanted or inputs is None:
            return None
        return checked(model, folded, inputs, names, refold, tolerance=self.tolerance, where="the model")

    def insist_that_it_runs(self, model: Any, inputs: Any) -> None:
        """Where nothing went there is nothing to compare, but reasons found with inputs on which the model
        raises say nothing. Raises: RunError.
        """
        from bntool.sources.running import runnable

        if self.wanted and inputs is not None:
            runnable(model)(inputs)


def fold_(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    progress: Progress = silent,
) -> Result[nn.Module, FoldReport]:
    """Fold in place: no copy of the model is made, so nothing can be compared with the original.

    Takes little more memory than the largest weights that change. Raises: UsageError for what is no module.
    """
    from bntool.edits import plan_of
    from bntool.fold_job import Job, collector_paused

    model, example_inputs = given_module(model, example_inputs, "fold_")
    progress("fold", 0, 1)
    job = Job(model, call_arguments(example_inputs), listed(keep), in_place=True)
    with collector_paused():
        job.run()
        report = report_of(job.plan, job.graph, notes=job.graph.notes, keep=job.keep, macs=False)
        report = replace(report, plan=plan_of(model))
    progress("fold", 1, 1)
    return Result(model, report)


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """(args, kwargs) for the model: a tuple or list is several arguments, a dict is keywords."""
    if example_inputs is None:
        return None
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}
