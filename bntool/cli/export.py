"""`bntool export`: write a PyTorch model as ONNX, checked against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bntool.cli import common, screen

if TYPE_CHECKING:
    from bntool.export import ExportReport


@common.command
def export(
    model: common.ModelRef,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="The file to write.")],
    inputs: common.Inputs = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold norms first.")] = True,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Leave the batch size open.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset (default: the exporter's).")
    ] = None,
    tolerance: common.Tolerance = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Write a model as ONNX and check the file.

    Norms are folded first; the file is run under ONNX Runtime and compared with PyTorch.

    Not written unless ONNX Runtime computes what PyTorch computes (else exit code 6).
    """
    from bntool.export import export
    from bntool.sources.writing import beside

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    example = loaded.example_inputs()
    room = common.scratch() if dry_run else beside(output, force=force)
    with screen.progress_bar() as progress, room as target:
        report = export(
            loaded.model,
            target / output.name if dry_run else target,
            example,
            fold=fold,
            dynamic_batch=dynamic_batch,
            opset=opset,
            tolerance=tolerance,
            progress=progress,
        )
    if as_json:
        shown = None if dry_run else str(output)
        screen.emit_json({**report.to_dict(), "path": shown, "output": shown, "dry_run": dry_run})
        return
    show(report)
    screen.say("dry run: nothing written" if dry_run else f"written: {output} ({report.size_bytes:,} bytes)")


def show(report: ExportReport) -> None:
    """Each run under ONNX Runtime, compared with PyTorch."""
    rows = [
        (
            "on" if check.optimised else "off",
            f"batch {check.batch}, {'as given' if check.given else 'other values'}",
            output.output,
            f"{output.max_abs:.2e}",
            f"{output.max_rel:.2e}",
            f"{check.tolerance:.1e}",
        )
        for check in report.checks
        for output in check.outputs
    ]
    columns = ("ORT optimiser", "inputs", "output", "max abs error", "max rel error", "allowed")
    screen.table(columns, rows, right=columns[3:])
    if report.fold is not None:
        screen.say(f"{len(report.fold['folded'])} of {report.fold['found']} norms folded before the export")
    screen.say(
        f"opset {report.opset}, inputs {', '.join(report.inputs)}, outputs {', '.join(report.outputs)}"
    )
    for note in report.notes:
        screen.note(f"note: {note}")
