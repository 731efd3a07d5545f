"""`bntool verify A B`: do two models compute the same?"""

from __future__ import annotations

from typing import Annotated

import typer

from bntool.cli import common, delivery, screen


@common.command
def verify(
    reference: common.ModelRef,
    candidate: Annotated[str, typer.Argument(metavar="OTHER", help="The model to compare with it.")],
    inputs: common.Inputs = None,
    weights: common.Weights = None,
    trust: common.Trust = False,
    tolerance: common.Tolerance = None,
    as_json: common.AsJson = False,
) -> int:
    """Check that two models compute the same.

    Models of any kind run on the same inputs, and every output is compared.

    Exit code 6 when they differ by more than rounding explains. --weights goes with the first model.
    """
    from bntool.verify import verify

    first = common.open_model(reference, inputs=inputs, weights=weights, trust=trust)
    second = common.open_model(candidate, inputs=inputs, trust=trust)
    with screen.progress_bar() as progress:
        found = verify(first, second, tolerance=tolerance, progress=progress)
    if as_json:
        screen.emit_json(found.to_dict())
    else:
        delivery.verification_table(found)
        screen.say(delivery.verification_line(found) if found.ok else f"different: {found.complaint()}")
        screen.say(f"smallest tolerance that would pass: {found.smallest_tolerance:.1e}")
    delivery.verification_notes(found)
    return 0 if found.ok else 6
