"""`bntool replace`: another kind of norm where one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bntool.cli import common, delivery, screen

if TYPE_CHECKING:
    from bntool.replace import ReplaceReport

Kind = Literal["batch", "sync", "group", "layer", "instance", "rms", "renorm", "ghost", "frozen", "none"]


@common.command
def replace(
    model: common.ModelRef,
    to: Annotated[Kind, typer.Option("--to", help="The norm to put in place of the one there.")],
    output: common.Output = None,
    groups: Annotated[int | None, typer.Option("--groups", min=1, help="Groups of a group norm.")] = None,
    virtual_batch_size: Annotated[
        int, typer.Option("--virtual-batch-size", min=2, help="Of a ghost batch norm.")
    ] = 32,
    include: common.Include = None,
    exclude: common.Exclude = None,
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Replace norms by another kind.

    Gamma, beta, statistics, eps, dtype and device are carried over where the new kind has them.
    """
    from bntool.replace import replace

    loaded = common.open_module(model, inputs=inputs, weights=weights, trust=trust)
    example = delivery.known_inputs(loaded)
    way = delivery.Delivery(loaded, example, output, force=force, dry_run=dry_run, as_json=as_json)
    result = replace(
        loaded.model,
        to,
        example_inputs=example,
        include=include or (),
        exclude=exclude or (),
        groups=groups,
        virtual_batch_size=virtual_batch_size,
        dry_run=dry_run,
    )
    way.deliver(result, show)


def show(report: ReplaceReport) -> None:
    """A line per norm."""
    rows = [(e.name, e.was, e.now, f"keeps {e.keeps}" if e.keeps else "") for e in report.replaced]
    rows += [(name, "", "kept", reason) for name, reason in report.kept.items()]
    screen.table(("norm", "was", "is", "note"), rows)
    screen.say(f"{screen.counted(len(report.replaced), 'norm')} replaced")
    if report.eval is not None:
        moved = report.eval.max_rel_error
        screen.say(f"eval mode: outputs moved by at most {moved:.1e} of their largest value")
    for note in report.notes:
        screen.note(f"note: {note}")
