"""Do two models compute the same? Both run on the same inputs, every output compared, figures given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bntool.errors import RunError, UsageError, VerificationError, on_one_line
from bntool.progress import Progress, silent
from bntool.report.agreement import Agreement, compare, tolerance_for
from bntool.result import SCHEMA_VERSION
from bntool.rounding import MARGIN, coarsest_step, explained, repeats, rounding_noise
from bntool.sources.base import Loaded
from bntool.sources.running import Outputs, Runnable, runnable

#: a tolerance above this cannot see a weight that is 1 % off
BLUNT = 0.01


@dataclass(frozen=True)
class Run:
    """One call of both models: what each output of `b` is off from that of `a`, at one batch size."""

    batch: int | None
    outputs: tuple[Agreement, ...]
    mismatch: str = ""
    """Why the outputs could not be paired, if so."""

    def within(self, tolerance: float) -> bool:
        return not self.mismatch and all(output.within(tolerance) for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        outputs = [output.to_dict() for output in self.outputs]
        return {"batch": self.batch, "mismatch": self.mismatch, "outputs": outputs}


@dataclass(frozen=True)
class Verification:
    """Whether `b` computes what `a` computes.

    Units: `tolerance` and `smallest_tolerance` are largest differences over the largest value of an output.
    """

    tolerance: float
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    drowned_in: float = 0.0
    """How far rounding alone moves the outputs, where that is so far that a right model may be as far off."""

    @property
    def ok(self) -> bool:
        return bool(self.runs) and all(run.within(self.tolerance) for run in self.runs)

    @property
    def smallest_tolerance(self) -> float:
        """The tolerance that would just pass; infinite when none would."""
        if not self.runs or any(run.mismatch for run in self.runs):
            return float("inf")
        outputs = [output for run in self.runs for output in run.outputs]
        return max((np.inf if o.non_finite else o.max_rel for o in outputs), default=0.0)

    def complaint(self) -> str:
        """Why it is not ok, in a sentence."""
        mismatch = next((run.mismatch for run in self.runs if run.mismatch), "")
        if mismatch:
            return mismatch
        worst = max((o for r in self.runs for o in r.outputs), key=lambda o: (o.non_finite, o.max_rel))
        named = f"output {worst.output}" if worst.output else "the output"
        if worst.non_finite:
            return f"{named} has {worst.non_finite} values that are not finite or not there on one side only"
        off = f"{named} is off by {worst.max_rel:.2e} of its largest value"
        if self.drowned_in:
            return (
                f"{off}, which tells nothing: the weights' last bits alone move it by {self.drowned_in:.2e}"
            )
        return f"{off} (allowed: {self.tolerance:.2e})"

    def insist(self, where: str = "", next: str = "Nothing was written.") -> None:
        """Raises: VerificationError unless ok."""
        if not self.ok:
            raise VerificationError(self.complaint(), where=where, next=next)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "tolerance": self.tolerance,
            "smallest_tolerance": self.smallest_tolerance,
            "runs": [run.to_dict() for run in self.runs],
            "notes": list(self.notes),
        }


def verify(
    a: Any,
    b: Any,
    example_inputs: Any = None,
    *,
    tolerance: float | None = None,
    second_batch: bool = True,
    trust: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Run `a`, the reference, and `b` on the same inputs and compare every output.

    Each is an nn.Module (run in eval mode), an exported program, an ONNX model, or a reference to one;
    without `example_inputs` those that `a`'s, else `b`'s reference names are used. `tolerance` is the largest
    difference allowed over the largest value of an output; by default it follows from the dtype and the
    number of layers, or from what last bits do to the reference where that amplifies rounding. Where both
    models allow it they also run with one more item in the batch.

    Raises: UsageError when no inputs are known, LoadError for a bad reference, RunError when a model raises.
    """
    sides = [_opened(model, trust) for model in (a, b)]
    inputs = example_inputs if example_inputs is not None else _inputs_of(sides)
    if batch_size(inputs) == 0:
        raise UsageError("the inputs are empty", next="Give at least one item: nothing can be compared.")
    first, second = (runnable(side.model) for side in sides)
    allowed = tolerance_of(first, second) if tolerance is None else tolerance
    progress("verify", 0, 2)
    reference = first(inputs)
    if not reference:
        raise UsageError("the model returns no tensors", next="Pass --no-verify: nothing can be compared.")
    runs, notes = [compared(batch_size(inputs), reference, second(inputs))], _remarks(reference, allowed)
    progress("verify", 1, 2)
    if second_batch:
        more, note = _second_run(first, second, inputs)
        runs += more
        notes += note
    progress("verify", 2, 2)
    found = Verification(allowed, tuple(runs), tuple(notes))
    if tolerance is None and not found.ok and first.kind == "module":
        return _with_evidence(found, sides[0].model, inputs, reference)
    return found


def _with_evidence(found: Verification, model: Any, inputs: Any, reference: Outputs) -> Verification:
    """The tolerance raised, where the reference itself amplifies rounding as much as the outputs differ."""
    if not np.isfinite(found.smallest_tolerance):
        return found
    if not repeats(model, inputs, reference, found.tolerance):
        return replace(found, notes=(*found.notes, "the reference does not give the same twice"))
    step = coarsest_step(model, inputs)
    noise = rounding_noise(model, inputs, reference, step)
    allowed = explained(noise, step)
    if found.smallest_tolerance > allowed:
        return replace(found, drowned_in=noise) if found.smallest_tolerance <= MARGIN * noise else found
    note = f"the model amplifies rounding: one step of it in every weight moves the outputs by {noise:.1e}"
    return replace(found, tolerance=allowed, notes=(*found.notes, note))


def tolerance_of(*models: Runnable) -> float:
    """What rounding explains at the coarsest dtype and the greatest depth of the models."""
    return tolerance_for(max(m.eps for m in models), max(m.depth for m in models))


def _opened(model: Any, trust: bool) -> Loaded:
    from bntool.sources.opening import open_model

    if isinstance(model, str | Path):
        return open_model(str(model), trust=trust)
    return model if isinstance(model, Loaded) else Loaded("", "given", model)


def _inputs_of(sides: Sequence[Loaded]) -> Any:
    for side in sides:
        if side.has_inputs:
            return side.example_inputs()
    raise UsageError("no example inputs are known", next="Pass --input 1x3x224x224 (example_inputs=...).")


def _remarks(reference: Outputs, tolerance: float) -> list[str]:
    notes = []
    broken = [name or "the output" for name, array in reference if not np.isfinite(floats(array)).all()]
    if broken:
        notes.append(f"the reference itself gives values that are not finite: {', '.join(broken)}")
    if tolerance > BLUNT:
        notes.append(f"at this dtype the tolerance is {tolerance:.2g}: small differences go unseen")
    return notes


def floats(array: Any) -> Any:
    return array if array.dtype.kind in "fc" else np.zeros(1)


def compared(batch: int | None, a: Outputs, b: Outputs) -> Run:
    """Numbers are compared as such; labels, or whatever else is no number, have to be the same."""
    if len(a) != len(b):
        return Run(batch, (), f"the first model has {len(a)} outputs, the second {len(b)}")
    by_name = dict(b) if {n for n, _ in a} == {n for n, _ in b} else {}
    pairs = [(name, x, by_name.get(name, y)) for (name, x), (_, y) in zip(a, b, strict=True)]
    shapes = [f"{n or 'the output'}: {x.shape} and {y.shape}" for n, x, y in pairs if x.shape != y.shape]
    if shapes:
        return Run(batch, (), f"shapes differ, {'; '.join(shapes)}")
    other = [n for n, x, y in pairs if not _is_number(x) and not np.array_equal(x, y)]
    if other:
        return Run(batch, (), f"output {other[0]} holds other values, which are no numbers")
    return Run(batch, tuple(compare(name, x, y) for name, x, y in pairs if _is_number(x)))


def _is_number(values: Any) -> bool:
    """(bfloat16 and the like, which NumPy calls void, are numbers.)"""
    return values.dtype.kind in "biufcV"


# --- another batch size


def _second_run(first: Runnable, second: Runnable, inputs: Any) -> tuple[list[Run], list[str]]:
    """The comparison with one more item in the batch, or a note why there is none."""
    batch = batch_size(inputs)
    if batch is None:
        return [], ["one batch size only: the inputs have no common first dimension"]
    larger = enlarged(inputs, batch)
    try:
        return [compared(batch + 1, first(larger), second(larger))], []
    except RunError as problem:
        return [], [f"one batch size only: with {batch + 1} items {on_one_line(problem.what, 200)}"]


def leaves(inputs: Any) -> list[Any]:
    """The tensors and arrays of the inputs."""
    if hasattr(inputs, "shape"):
        return [inputs]
    if isinstance(inputs, dict):
        inputs = list(inputs.values())
    return [leaf for part in inputs for leaf in leaves(part)] if isinstance(inputs, tuple | list) else []


def batch_size(inputs: Any) -> int | None:
    """The first dimension, if all inputs share it."""
    sizes = {leaf.shape[0] if len(leaf.shape) else None for leaf in leaves(inputs)}
    return sizes.pop() if len(sizes) == 1 else None


def enlarged(inputs: Any, batch: int) -> Any:
    """The same inputs with the first item of the batch once more at the end."""
    if hasattr(inputs, "shape"):
        index = [*range(batch), 0]
        return inputs[index]
    if isinstance(inputs, dict):
        return {key: enlarged(part, batch) for key, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(enlarged(part, batch) for part in inputs)
    return inputs
