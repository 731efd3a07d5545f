"""`bntool demo`: the whole tour on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bntool.cli import common, screen

if TYPE_CHECKING:
    from bntool.demo.tour import Step, Tour


@common.command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where to write.")] = Path(
        "demo-out"
    ),
    force: common.Force = False,
    seconds: Annotated[
        float, typer.Option("--bench-seconds", help="Time to spend on measuring, in all.")
    ] = 12.0,
    as_json: common.AsJson = False,
) -> None:
    """Take the whole tour on real digits.

    Trains a small CNN, inserts norms, trains on, calibrates, folds, verifies, exports and benches it: in
    about a minute.

    Prints the commands that do the same on your own model.
    """
    from bntool.demo.tour import demo

    with screen.progress_bar() as progress:
        tour = demo(output, force=force, bench_s=seconds, progress=progress, tell=tell)
    if as_json:
        screen.emit_json(tour.to_dict())
    else:
        show(tour)


def tell(step: Step) -> None:
    """A step as it is done, on stderr."""
    if step.command:
        screen.note(f"$ {step.command}")
    screen.note(f"  {step.name}: {step.outcome}")


def show(tour: Tour) -> None:
    """The closing table: what happened, and the files written."""
    screen.table(("step", "what happened"), [(step.name, step.outcome) for step in tour.steps])
    models = list(next(iter(tour.latency_s.values()), {}))
    rows = [(m, *(f"{times[m] * 1e3:.2f} ms" for times in tour.latency_s.values())) for m in models]
    screen.table(("median latency, batch 32", *tour.latency_s), rows, right=tuple(tour.latency_s))
    screen.table(("written by", "file"), [(s.name, s.file) for s in tour.steps if s.file])
    screen.say("On your own model:")
    for step in tour.steps:
        if step.command:
            screen.say(f"  {step.command}")
