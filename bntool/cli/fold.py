"""`bntool fold`: take the norms out of a model, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bntool.cli import common, delivery, screen

if TYPE_CHECKING:
    from bntool.result import FoldReport


@common.command
def fold(
    model: common.ModelRef,
    output: common.Output = None,
    inputs: common.Inputs = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="GLOB", help="Leave norms of this name. Repeatable.")
    ] = None,
    form: common.Form = "module",
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with the original.")] = True,
    tolerance: common.Tolerance = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Fold every batch norm that can go into its neighbours, and say why the others stay.

    The result is compared with the original and written only if it computes the same (else exit code 6).
    """
    from bntool.fold import fold
    from bntool.verify import verify

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    example = delivery.known_inputs(loaded)
    delivery.check_output(loaded, output, force=force, inputs=example)
    with screen.progress_bar() as progress:
        own_check = check and tolerance is None
        result = fold(
            loaded.model, example, keep=tuple(keep or ()), form=form, verify=own_check, progress=progress
        )
        found = result.report.verification
        if check and not own_check and example is not None:
            found = verify(loaded.model, result.model, example, tolerance=tolerance, progress=progress)
            found.insist(where=model)
    written = delivery.deliver(loaded, result.model, output, force=force, dry_run=dry_run, inputs=example)
    if as_json:
        document = {**result.report.to_dict(), "verification": found.to_dict() if found else None}
        screen.emit_json(delivery.with_output(document, written, dry_run=dry_run))
        return
    show(result.report)
    if found is not None:
        screen.say(delivery.verification_line(found))
    elif check:
        screen.warn("not verified: no example inputs are known; pass --input 1x3x224x224")
    screen.say(delivery.closing_line(written, dry_run=dry_run))


def show(report: FoldReport) -> None:
    """A line per norm, then how many went."""
    rows: list[tuple[Any, ...]] = [(e.name, "folded", f"{e.side} {e.into}") for e in report.folded]
    rows += [(e.name, "kept", e.reason) for e in report.kept]
    if rows:
        screen.table(("norm", "", "into, or why not"), rows)
    for note in report.notes:
        screen.note(f"note: {note}")
    screen.say(f"{len(report.folded)} of {report.found} norms folded, {len(report.kept)} kept")
