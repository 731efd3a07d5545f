"""`bntool inspect`: what norms a model has, and what folding would do to each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bntool.cli import common, delivery, screen
from bntool.cli.fold import fold_tables

if TYPE_CHECKING:
    from bntool.health import Health
    from bntool.inspect import Inspection


@common.command
def inspect(
    model: common.ModelRef,
    inputs: common.Inputs = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="The training batch, for n_eff (default: the inputs')."),
    ] = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    as_json: common.AsJson = False,
) -> None:
    """Say what a model is and what would fold.

    Of every norm: what folding would do to it, or why it would stay; over how many values it takes its
    statistics in training; and what is wrong with it.
    """
    from bntool.inspect import inspect

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    report = inspect(loaded.model, delivery.known_inputs(loaded), batch_size=batch_size)
    if as_json:
        screen.emit_json(report.to_dict())
    else:
        show(report)


def show(report: Inspection) -> None:
    """What it is, then a line per norm."""
    kind = {"module": f"module {report.name}", "program": "exported program", "onnx": "ONNX model"}[
        report.kind
    ]
    size = report.size
    screen.say(
        f"{kind}: {size.parameters:,} parameters, {size.size_bytes:,} bytes, {report.fold.found} norms"
    )
    fold_tables(report.fold, done="folds")
    if report.fold.found:
        screen.say(f"{len(report.fold.folded)} of {report.fold.found} norms would fold")
    if report.health is not None:
        show_health(report.health)


def show_health(report: Health) -> None:
    """The norms that train on few values, then every finding with what to do."""
    risky = [(s.name, s.n_eff, s.risk) for s in report.sizes if s.risk != "none"]
    if report.sizes:
        least = min(report.sizes, key=lambda s: s.n_eff)
        screen.say(f"n_eff at batch size {report.batch_size}: at least {least.n_eff} ({least.name})")
    if risky:
        screen.table(("norm", "n_eff", "small-batch risk"), risky, right=("n_eff",))
    for finding in report.findings:
        screen.say(f"{finding.severity}: {finding.where}: {finding.what}. {finding.do}")
