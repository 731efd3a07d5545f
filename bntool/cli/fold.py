"""`bntool fold`: take the norms out of a model, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bntool.cli import common, delivery, screen
from bntool.refused import refuse_others

if TYPE_CHECKING:
    from bntool.result import FoldEntry, FoldReport, MergedLayer
    from bntool.verify import Verification


@common.command
def fold(
    model: common.ModelRef,
    output: common.Output = None,
    inputs: common.Inputs = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="GLOB", help="Leave norms of this name. Repeatable.")
    ] = None,
    form: common.Form = "module",
    merge: Annotated[
        bool, typer.Option("--merge", help="Make parallel branches one layer. Implies --form graph.")
    ] = False,
    split: Annotated[
        bool, typer.Option("--split", help="One copy of a shared layer per call. Implies --form graph.")
    ] = False,
    pad_values: Annotated[
        bool,
        typer.Option("--pad-values", help="Pass zero padding: pad with other values. Implies --form graph."),
    ] = False,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with the original.")] = True,
    tolerance: common.Tolerance = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Fold norms into their neighbours, exactly.

    Every norm that can go goes, and for each that stays there is a reason.

    The result is compared with the original and written only if it computes the same (else exit code 6).
    """
    if model.endswith(".onnx") and weights is None:
        refuse_others("onnx", {"--split": split, "--pad-values": pad_values})
        target = None if dry_run else output
        report = _fold_onnx(
            model, output, target, inputs, keep, merge=merge, check=check, tolerance=tolerance, force=force
        )
        _present(report, report.verification, target, dry_run=dry_run, as_json=as_json)
        return

    from bntool.fold import fold

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    example = delivery.known_inputs(loaded)
    way = delivery.Delivery(loaded, example, output, force=force, dry_run=dry_run, as_json=as_json)
    with screen.progress_bar() as progress:
        result = fold(
            loaded.model,
            example,
            keep=tuple(keep or ()),
            form="graph" if merge or split or pad_values else form,
            merge=merge,
            split=split,
            pad_values=pad_values,
            verify=check,
            tolerance=tolerance,
            progress=progress,
        )
    written = way.write(result.model)
    if check and example is None:
        screen.warn("not verified: no example inputs are known; pass --input 1x3x224x224")
    _present(result.report, result.report.verification, written, dry_run=dry_run, as_json=as_json)


def _fold_onnx(
    model: str,
    output: Path | None,
    target: Path | None,
    inputs: list[str] | None,
    keep: list[str] | None,
    *,
    merge: bool,
    check: bool,
    tolerance: float | None,
    force: bool,
) -> FoldReport:
    """File to file: neither torch nor the whole model is ever in memory."""
    from bntool.fold_onnx import fold_file
    from bntool.sources.inputs import parse_input
    from bntool.sources.writing import check_target

    if output is not None:
        delivery.check_onnx(output)
        check_target(output, force=force)
    with screen.progress_bar() as progress:
        return fold_file(
            model,
            target,
            keep=tuple(keep or ()),
            merge=merge,
            verify=check,
            tolerance=tolerance,
            inputs=[parse_input(text) for text in inputs or ()],
            force=force,
            progress=progress,
        )


def _present(
    report: FoldReport, found: Verification | None, written: Path | None, *, dry_run: bool, as_json: bool
) -> None:
    def show_both() -> None:
        show(report)
        if found is not None:
            delivery.show_verification(found)

    document = {**report.to_dict(), "verification": found.to_dict() if found else None}
    delivery.present(document, show_both, written, dry_run=dry_run, as_json=as_json)


def show(report: FoldReport) -> None:
    """A line per norm, then how many went."""
    fold_tables(report, done="folded")
    screen.say(f"{len(report.folded)} of {report.found} norms folded, {len(report.kept)} kept")
    if report.folded or report.merged:
        parameters, macs, size = savings([*report.folded, *report.merged])
        screen.say(f"saved: {parameters} parameters, {size} bytes" + (f", {macs} MACs" if macs else ""))


def savings(entries: Sequence[FoldEntry | MergedLayer]) -> tuple[str, str, str]:
    """(parameters, MACs, bytes) that go, together; negative for what is added. MACs are maybe not known."""
    macs = [e.macs_saved for e in entries if e.macs_saved is not None]
    parameters, size = sum(e.parameters_saved for e in entries), sum(e.bytes_saved for e in entries)
    return f"{parameters:,}", f"{sum(macs):,}" if macs else "", f"{size:,}"


def scales(entry: FoldEntry) -> str:
    """The range of the norm's scale over its channels."""
    if entry.scale_min is None or entry.scale_max is None:
        return ""
    return f"{entry.scale_min:.3g} to {entry.scale_max:.3g}"


def target(entry: FoldEntry) -> str:
    """Where a norm went: "after conv", or the layer it was merged into."""
    return f"into {entry.into}" if entry.side == "merged" else f"{entry.side} {entry.into}"


def fold_tables(report: FoldReport, *, done: str) -> None:
    """A line per norm: where it goes and what that saves, or why it stays."""
    rows = [(e.name, scales(e), target(e), *savings([e])) for e in report.folded]
    rows += [(e.name, "", f"replaces {', '.join(e.replaces)}", *savings([e])) for e in report.merged]
    figures = ("parameters saved", "MACs saved", "bytes saved")
    if rows:
        screen.table((done, "scale", "into", *figures), rows, right=figures)
    if report.kept:
        screen.table(("kept", "scale", "why"), [(e.name, scales(e), e.reason) for e in report.kept])
    for note in report.notes:
        screen.note(f"note: {note}")
