"""Fold a torch.export program into a program that torch alone loads and runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from bntool.agreed import OTHER_SIZES, agreed_plan
from bntool.blame import checked
from bntool.graphs.exported import other_sizes, program_graph
from bntool.graphs.fx_modules import FxGraph
from bntool.plan import Plan
from bntool.program_edit import ProgramEdit
from bntool.program_merge import merge_branches
from bntool.progress import Progress, silent
from bntool.report.folds import EXPORTED, report_of
from bntool.report.merges import Merged, norms_of, with_merged
from bntool.result import FoldReport, Result
from bntool.rewriting import OutOfRange
from bntool.sources.pt2 import own_inputs


def fold_program(
    program: ExportedProgram,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    merge: bool = False,
    verify: bool = True,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Result[ExportedProgram, FoldReport]:
    """A folded copy of `program`: weights that stay are shared with it, the signature lists what is left.

    `example_inputs` are the program's own unless given. Dynamic shapes and their constraints stay. `merge`
    makes parallel branches and chains one layer each, also those that only folding made a chain.

    Raises: VerificationError that names the norm to blame when the outputs differ.
    """
    progress("fold", 0, 2)

    def folded(more: Sequence[str]) -> Folded:
        return _merged_and_folded(program, example_inputs, (*keep, *more), merge)

    made = folded(())
    progress("verify", 1, 2)
    inputs, verification = example_inputs if example_inputs is not None else own_inputs(program), None
    if verify and inputs is not None:
        verification = checked(
            program,
            made.program,
            inputs,
            made.names,
            lambda more: folded(more).program,
            tolerance=tolerance,
            where="the program",
        )
    progress("verify", 2, 2)
    notes = made.graph.notes
    report = report_of(
        made.plan, made.graph, notes=notes, keep=keep, verification=verification, advice=EXPORTED
    )
    return Result(made.program, with_merged(report, made.merged))


@dataclass(frozen=True)
class Folded:
    """A folded program, and what was planned on which graph once its branches were merged."""

    program: ExportedProgram
    graph: FxGraph
    plan: Plan
    merged: list[Merged]

    @property
    def names(self) -> list[str]:
        """Of the norms that went, in order."""
        return [*norms_of(self.merged), *self.plan.names]


def _merged_and_folded(program: ExportedProgram, inputs: Any, keep: Sequence[str], merge: bool) -> Folded:
    start, merged = merge_branches(program, inputs, keep=keep) if merge else (program, [])
    graph = program_graph(start, inputs)
    folded, plan = _folded(start, graph, keep, other_sizes(start, graph, inputs))
    if merge:
        folded, late = merge_branches(folded, inputs, keep=keep)
        merged += late
    return Folded(folded, graph, plan, merged)


def _folded(
    program: ExportedProgram, graph: FxGraph, keep: Sequence[str], others: Sequence[FxGraph]
) -> tuple[ExportedProgram, Plan]:
    """The program with every norm folded that can go, and whose new weights fit their dtype.

    `others` are the program as it is for other sizes that are open, where all that goes has to go alike.
    """
    barred: dict[Hashable, str] = {}
    while True:
        plan = agreed_plan(graph, [(other, OTHER_SIZES) for other in others], keep=keep, barred=barred)
        try:
            return ProgramEdit.of(program).carried_out(graph, plan), plan
        except OutOfRange as problem:
            barred[plan.to_blame(problem)] = problem.reason
