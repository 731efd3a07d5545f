"""Fold a torch.export program into a program that torch alone loads and runs."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

from torch.export import ExportedProgram

from bntool.graphs.exported import program_graph
from bntool.plan import make_plan
from bntool.program_edit import ProgramEdit
from bntool.progress import Progress, silent
from bntool.report.folds import report_of
from bntool.result import FoldReport, Result
from bntool.rewriting import OutOfRange
from bntool.verify import verify as compare


def fold_program(
    program: ExportedProgram,
    example_inputs: Any = None,
    *,
    keep: Sequence[str] = (),
    verify: bool = True,
    progress: Progress = silent,
) -> Result[ExportedProgram, FoldReport]:
    """A folded copy of `program`: weights that stay are shared with it, the signature lists what is left.

    `example_inputs` are the program's own unless given. Dynamic shapes and their constraints stay.

    Raises: VerificationError when the outputs differ.
    """
    progress("fold", 0, 2)
    graph = program_graph(program, example_inputs)
    barred: dict[Hashable, str] = {}
    while True:
        plan = make_plan(graph, keep=keep, barred=barred)
        try:
            folded = ProgramEdit.of(program).carried_out(graph, plan)
            break
        except OutOfRange as problem:
            barred[problem.owner] = problem.reason
    progress("verify", 1, 2)
    inputs = example_inputs if example_inputs is not None else _own_inputs(program)
    verification = compare(program, folded, inputs) if verify and inputs is not None else None
    if verification is not None:
        verification.insist(where="the folded program")
    progress("verify", 2, 2)
    return Result(folded, report_of(plan, graph, verification=verification))


def _own_inputs(program: ExportedProgram) -> Any:
    if program.example_inputs is None:
        return None
    args, kwargs = copy.copy(program.example_inputs)
    return dict(kwargs) if kwargs and not args else tuple(args)
