"""`bntool inspect`: what norms a model has, and what folding would do to each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bntool.cli import common, delivery, screen
from bntool.cli.fold import fold_table

if TYPE_CHECKING:
    from bntool.inspect import Inspection


@common.command
def inspect(
    model: common.ModelRef,
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    as_json: common.AsJson = False,
) -> None:
    """Say what a model is and what would fold.

    Of every norm: what folding would do to it, or why it would stay.
    """
    from bntool.inspect import inspect

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    report = inspect(loaded.model, delivery.known_inputs(loaded))
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
    fold_table(report.fold, done="folds")
    if report.fold.found:
        screen.say(f"{len(report.fold.folded)} of {report.fold.found} norms would fold")
