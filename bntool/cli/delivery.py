"""What the commands that change a model share: check the target first, verify, write, say where it went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.cli import screen

if TYPE_CHECKING:
    from bntool.sources import Loaded
    from bntool.verify import Verification


def known_inputs(loaded: Loaded) -> Any:
    """The example inputs, or None where none are known."""
    return loaded.example_inputs() if loaded.has_inputs else None


def batches(data: str, batch_size: int) -> Any:
    """The inputs that --data names, in batches."""
    from bntool.sources.batches import read_batches

    if data != "digits":
        return read_batches(data, batch_size=batch_size)
    from bntool.demo.training import digits

    return list(digits().images.split(batch_size))


def check_output(loaded: Loaded, output: Path | None, *, force: bool, inputs: Any) -> None:
    """Say now, not after the work, that the result could not be written. Raises: UsageError."""
    from bntool.save import check

    if output is not None:
        check(loaded.model, output, example_inputs=inputs, force=force)


def deliver(
    loaded: Loaded, model: Any, output: Path | None, *, force: bool, dry_run: bool, inputs: Any
) -> Path | None:
    """Write the result, unless it was only to be planned. Returns: the path, or None."""
    from bntool.save import save

    if output is None or dry_run:
        return None
    return save(model, output, example_inputs=inputs, inputs=loaded.given, force=force)


def closing_line(output: Path | None, *, dry_run: bool) -> str:
    if dry_run:
        return "dry run: nothing written"
    return f"written: {output}" if output is not None else "nothing written: pass -o to write the result"


def with_output(document: Mapping[str, Any], output: Path | None, *, dry_run: bool) -> dict[str, Any]:
    """A report's JSON with where the result went."""
    return {**document, "dry_run": dry_run, "output": None if output is None else str(output)}


def verification_line(found: Verification) -> str:
    """One line on how far the result is from the original."""
    batches = " and ".join(str(run.batch) for run in found.runs if run.batch is not None)
    head = f"verified: largest difference {found.smallest_tolerance:.1e} of the output"
    return f"{head} (allowed {found.tolerance:.1e}{f', batch {batches}' if batches else ''})"


def verification_table(found: Verification) -> None:
    """Every output of every run."""
    rows = []
    for run in found.runs:
        for out in run.outputs:
            agreement = "" if out.argmax_agreement is None else f"{out.argmax_agreement:.2%}"
            figures = (f"{out.max_abs:.2e}", f"{out.max_rel:.2e}", out.non_finite, agreement)
            rows.append((out.output or "output", "" if run.batch is None else run.batch, *figures))
    columns = ("output", "batch", "max abs error", "max rel error", "not finite", "argmax agrees")
    screen.table(columns, rows, right=columns[1:])
