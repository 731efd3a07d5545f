"""What the commands that change a model share: check the target first, write, say where it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.cli import screen
from bntool.errors import UsageError

if TYPE_CHECKING:
    from bntool.result import Result
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


def arrays(data: str, batch_size: int) -> Any:
    """The same for an ONNX model: a NumPy file is read without torch."""
    path = Path(data)
    if path.suffix not in (".npy", ".npz"):
        return batches(data, batch_size)
    from bntool.sources.arrays import array_batches

    return array_batches(path, batch_size)


def check_onnx(output: Path) -> None:
    """Raises: UsageError."""
    if output.suffix != ".onnx":
        what = "an ONNX model is written as .onnx"
        raise UsageError(what, where=str(output), next="Change the suffix.")


@dataclass(frozen=True)
class Delivery:
    """How a command's result reaches the user: a file, whose place was checked first, and a table or JSON."""

    loaded: Loaded
    inputs: Any
    output: Path | None
    force: bool
    dry_run: bool
    as_json: bool

    def __post_init__(self) -> None:
        """Say now, not after the work, that the result could not be written. Raises: UsageError."""
        from bntool.save import check

        if self.output is not None:
            check(self.loaded.model, self.output, example_inputs=self.inputs, force=self.force)

    def write(self, model: Any) -> Path | None:
        """Write the result, unless it was only to be planned. Returns: the path, or None."""
        from bntool.save import save

        if self.output is None or self.dry_run:
            return None
        given = self.loaded.given
        return save(model, self.output, example_inputs=self.inputs, inputs=given, force=self.force)

    def deliver(self, result: Result[Any, Any], show: Callable[[Any], None]) -> None:
        """Write the model, then `show` the report, or print it as JSON."""
        written = self.write(result.model)
        present(
            result.report.to_dict(),
            lambda: show(result.report),
            written,
            dry_run=self.dry_run,
            as_json=self.as_json,
        )


def present(
    document: Mapping[str, Any],
    show: Callable[[], None],
    written: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """A report with where the result went: as JSON, or as `show` prints it and a closing line."""
    if as_json:
        output = None if written is None else str(written)
        screen.emit_json({**document, "dry_run": dry_run, "output": output})
    else:
        show()
        screen.say(closing_line(written, dry_run=dry_run))


def closing_line(output: Path | None, *, dry_run: bool) -> str:
    if dry_run:
        return "dry run: nothing written"
    return f"written: {output}" if output is not None else "nothing written: pass -o to write the result"


def show_verification(found: Verification) -> None:
    """How far the result is from the original, on every output, and what to know about that."""
    verification_table(found)
    screen.say(verification_line(found))
    verification_notes(found)


def verification_line(found: Verification) -> str:
    """One line on how far the result is from the original."""
    batches = ", ".join(dict.fromkeys(str(run.batch) for run in found.runs if run.batch is not None))
    head = f"verified: largest difference {found.smallest_tolerance:.1e} of the output"
    return f"{head} (allowed {found.tolerance:.1e}{f', batch {batches}' if batches else ''})"


def verification_notes(found: Verification) -> None:
    for note in found.notes:
        screen.note(f"note: {note}")


def verification_table(found: Verification) -> None:
    """Every output of every run."""
    rows = []
    for run in found.runs:
        for out in run.outputs:
            agreement = "" if out.argmax_agreement is None else f"{out.argmax_agreement:.2%}"
            figures = (f"{out.max_abs:.2e}", f"{out.max_rel:.2e}", out.non_finite, agreement)
            rows.append((out.output or "output", "" if run.batch is None else run.batch, *figures))
    columns = ("output", "batch", "max abs error", "max rel error", "not finite", "argmax agrees")
    if rows:  # outputs that cannot be paired have none
        screen.table(columns, rows, right=columns[1:])
