"""`bntool calibrate`: running statistics of norms, computed anew from data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bntool.cli import common, delivery, screen

if TYPE_CHECKING:
    from bntool.calibrate import CalibrateEntry, CalibrateReport


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
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run torch's update_bn on a copy, and show both.")
    ] = False,
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
    way = delivery.Delivery(loaded, example, output, force=force, dry_run=dry_run, as_json=as_json)
    batches = delivery.batches(data, batch_size)
    with screen.progress_bar() as progress:
        result = calibrate(
            loaded.model,
            batches,
            include=include or (),
            exclude=exclude or (),
            method=method,
            compare=compare,
            progress=progress,
        )
    way.deliver(result, show)


def show(report: CalibrateReport) -> None:
    """How far each norm's statistics moved; where update_bn would have put them, if that was asked."""
    columns = ["norm", "mean moved (std)", "new variance / old"]
    rows: list[tuple[str, ...]] = [
        (e.name, f"{e.mean_moved:.3g}", spread(e.var_ratio_min, e.var_ratio_max)) for e in report.calibrated
    ]
    if any(e.update_bn_mean_off is not None for e in report.calibrated):
        columns += ["update_bn: mean off (std)", "update_bn: variance / new"]
        rows = [(*row, *compared(entry)) for row, entry in zip(rows, report.calibrated, strict=True)]
    screen.table(columns, rows, right=columns[1:])
    for entry in report.calibrated:
        if entry.note:
            screen.note(f"{entry.name}: {entry.note}")
    for name, reason in report.skipped.items():
        screen.note(f"left alone: {name}: {reason}")
    for note in report.notes:
        screen.note(f"note: {note}")
    samples = screen.counted(report.samples, "sample")
    screen.say(f"{screen.counted(len(report.calibrated), 'norm')} calibrated on {samples}")


def compared(entry: CalibrateEntry) -> tuple[str, str]:
    low, high = entry.update_bn_var_ratio_min, entry.update_bn_var_ratio_max
    off = entry.update_bn_mean_off
    return ("", "") if off is None or low is None or high is None else (f"{off:.3g}", spread(low, high))


def spread(low: float, high: float) -> str:
    """The range of a ratio over channels."""
    return f"{low:.3g} to {high:.3g}"
