"""`bntool calibrate`: running statistics of norms, computed anew from data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bntool.cli import common, delivery, screen

if TYPE_CHECKING:
    from bntool.calibrate import CalibrateReport


@common.command
def calibrate(
    model: common.ModelRef,
    data: common.Data,
    output: common.Output = None,
    batch_size: common.BatchSize = 64,
    include: common.Include = None,
    exclude: common.Exclude = None,
    method: Annotated[
        Literal["auto", "lockstep", "passes"],
        typer.Option("--method", help="All batches side by side, or one pass over the data per norm."),
    ] = "auto",
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Recompute norms' statistics from data.

    Mean and variance are pooled exactly over all of it, each norm seeing its input as eval mode will give it.
    """
    from bntool.calibrate import calibrate

    loaded = common.open_module(model, inputs=inputs, weights=weights, trust=trust)
    example = delivery.known_inputs(loaded)
    delivery.check_output(loaded, output, force=force, inputs=example)
    batches = delivery.batches(data, batch_size)
    with screen.progress_bar() as progress:
        result = calibrate(
            loaded.model,
            batches,
            include=include or (),
            exclude=exclude or (),
            method=method,
            progress=progress,
        )
    written = delivery.deliver(loaded, result.model, output, force=force, dry_run=dry_run, inputs=example)
    if as_json:
        screen.emit_json(delivery.with_output(result.report.to_dict(), written, dry_run=dry_run))
        return
    show(result.report)
    screen.say(delivery.closing_line(written, dry_run=dry_run))


def show(report: CalibrateReport) -> None:
    """How far each norm's statistics moved."""
    rows = [
        (
            e.name,
            f"{e.mean_moved:.3g}",
            spread(e.var_ratio_min, e.var_ratio_max),
            spread(e.averaged_var_ratio_min, e.averaged_var_ratio_max),
            e.note,
        )
        for e in report.calibrated
    ]
    columns = ("norm", "mean moved (std)", "new variance / old", "averaged variance / pooled", "")
    screen.table(columns, rows, right=columns[1:4])
    for name, reason in report.skipped.items():
        screen.note(f"left alone: {name}: {reason}")
    screen.say(f"{len(report.calibrated)} norms calibrated on {report.samples} samples")


def spread(low: float | None, high: float | None) -> str:
    """The range of a ratio over channels."""
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"
