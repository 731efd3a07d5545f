"""`bntool insert`: put norms into a model without changing what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bntool.cli import common, delivery, screen

if TYPE_CHECKING:
    from bntool.insert_onnx import OnnxInsertReport
    from bntool.placing.options import InsertReport

Norm = Literal["batch", "sync", "group", "layer", "instance", "rms", "renorm", "ghost", "frozen", "auto"]
Where = Literal["before-activation", "after-activation", "before-layer"]


@common.command
def insert(
    model: common.ModelRef,
    output: common.Output = None,
    inputs: common.Inputs = None,
    data: common.OptionalData = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="The batch it will be trained with, and of --data (default: 64)."
        ),
    ] = None,
    norm: Annotated[Norm, typer.Option("--norm", help="What to put in; auto decides by n_eff.")] = "batch",
    where: Annotated[Where, typer.Option("--where", help="Where it goes.")] = "before-activation",
    init: Annotated[
        Literal["preserve", "fresh"],
        typer.Option("--init", help="preserve: outputs stay; fresh: to train anew."),
    ] = "preserve",
    layers: Annotated[
        Literal["conv", "linear", "all"] | None,
        typer.Option(
            "--layers", help="Which layers get norms (default: conv, or linear where there is none)."
        ),
    ] = None,
    include: common.Include = None,
    exclude: common.Exclude = None,
    bias: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option("--bias", help="A bias the norm hides (default: dropped, kept in a Sequential)."),
    ] = None,
    groups: Annotated[int | None, typer.Option("--groups", min=1, help="Groups of a group norm.")] = None,
    virtual_batch_size: Annotated[
        int, typer.Option("--virtual-batch-size", min=2, help="Of a ghost batch norm.")
    ] = 32,
    gated: Annotated[
        bool, typer.Option("--gated", help="Norms that cannot preserve start behind a closed gate.")
    ] = False,
    unfold: Annotated[
        bool, typer.Option("--unfold", help="Give a folded model its norms back, where they were.")
    ] = False,
    form: common.Form = "module",
    weights: common.Weights = None,
    trust: common.Trust = False,
    force: common.Force = False,
    dry_run: common.DryRun = False,
    as_json: common.AsJson = False,
) -> None:
    """Put norms into a model, outputs unchanged.

    Every layer that takes one gets a norm, set so that the model computes what it computed.

    Statistics come from --data, or from random inputs, and the report says which.

    An ONNX file gets batch norms behind its layers, and stays an ONNX file.
    """
    if model.endswith(".onnx") and weights is None:
        from bntool.insert_onnx import refuse_others

        asked = {"--norm": norm, "--where": where, "--init": init, "--form": form}
        refuse_others({**asked, "--gated": gated, "--groups": groups})
        report = _insert_onnx(
            model,
            output,
            inputs,
            data=None if data is None else delivery.arrays(data, batch_size or 64),
            layers=layers,
            include=include or (),
            exclude=exclude or (),
            batch_size=batch_size,
            keep_bias=bias == "keep",
            force=force,
            dry_run=dry_run,
        )
        written = None if dry_run else output
        delivery.present(report.to_dict(), lambda: show(report), written, dry_run=dry_run, as_json=as_json)
        return

    from bntool.insert import insert

    loaded = common.open_module(model, inputs=inputs, weights=weights, trust=trust)
    example = loaded.example_inputs()
    way = delivery.Delivery(loaded, example, output, force=force, dry_run=dry_run, as_json=as_json)
    with screen.progress_bar() as progress:
        result = insert(
            loaded.model,
            example,
            data=None if data is None else delivery.batches(data, batch_size or 64),
            norm=norm,
            where=where,
            init=init,
            layers=layers,
            bias=bias,
            groups=groups,
            virtual_batch_size=virtual_batch_size,
            gated=gated,
            slots=unfold,
            include=include or (),
            exclude=exclude or (),
            form=form,
            batch_size=batch_size,
            dry_run=dry_run,
            progress=progress,
        )
    way.deliver(result, show)


def _insert_onnx(
    model: str,
    output: Path | None,
    inputs: list[str] | None,
    *,
    dry_run: bool,
    keep_bias: bool,
    **options: Any,
) -> OnnxInsertReport:
    """File to file, without torch."""
    from bntool.insert_onnx import insert_file
    from bntool.onnx_inserting.put_in import Setting
    from bntool.sources.inputs import parse_input
    from bntool.sources.writing import check_target

    if output is not None:
        delivery.check_onnx(output)
        check_target(output, force=options["force"])
    with screen.progress_bar() as progress:
        return insert_file(
            model,
            None if dry_run else output,
            inputs=[parse_input(text) for text in inputs or ()],
            setting=Setting(keep_bias=keep_bias),
            progress=progress,
            **options,
        )


def show(report: InsertReport | OnnxInsertReport) -> None:
    """A line per norm, what was left out and why, and how far the outputs moved."""
    rows = [(e.layer, e.norm, e.name, str(e.n_eff), e.why) for e in report.inserted]
    rows += [(layer, "none", "", "", reason) for layer, reason in report.left_out.items()]
    screen.table(("layer", "norm", "its name", "n_eff", "note"), rows, right=("n_eff",))
    screen.say(f"{screen.counted(len(report.inserted), 'norm')}, statistics from {report.data}")
    show_proof(report)
    for note in report.notes:
        screen.note(f"note: {note}")


def show_proof(report: InsertReport | OnnxInsertReport) -> None:
    """How far the outputs moved."""
    from bntool.insert_onnx import OnnxInsertReport

    if isinstance(report, OnnxInsertReport):
        if report.verification is not None:
            screen.say(delivery.verification_line(report.verification))
            delivery.verification_notes(report.verification)
        return
    if report.eval is not None:
        moved = report.eval.max_rel_error
        screen.say(f"eval mode: outputs moved by at most {moved:.1e} of their largest value")
    for proof in report.train:
        change = proof.note or f"outputs differ by {proof.relative_change:.2g} of their spread"
        screen.say(f"train mode, batch {proof.batch_size}: {change}")
