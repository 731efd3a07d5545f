"""`bntool inspect`: what norms a model has, what folding would do to each, and what looks wrong."""

from __future__ import annotations

from bntool.cli import common, delivery, screen


@common.command
def inspect(
    model: common.ModelRef,
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    as_json: common.AsJson = False,
) -> None:
    """Say of every norm what folding would do to it, and why not where it would stay."""
    from bntool import inspect

    loaded = common.open_model(model, inputs=inputs, weights=weights, trust=trust)
    report = inspect(loaded.model, delivery.known_inputs(loaded))
    if as_json:
        screen.emit_json(report.to_dict())
    else:
        screen.say(str(report))
