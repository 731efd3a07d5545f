"""From candidates to cases: one per runtime and batch size, or one per model where sides are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bntool.bench.candidates import labelled, under
from bntool.bench.plan import Case, Gate
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.remote import check_python
from bntool.bench.revision import portable
from bntool.errors import UsageError
from bntool.sources.refs import PythonRef, parse

#: what a case is called when nothing sets it apart
PLAIN = "bench"


def with_file(candidate: Candidate, trust: bool, weights: str | Path | None) -> Candidate:
    """The candidate with what the user said of files. Weights are for factories: files bring their own."""
    wants = weights is not None and isinstance(parse(candidate.ref), PythonRef)
    return replace(candidate, trust=trust, weights=str(weights) if wants else None)


def spread_out(
    candidates: Sequence[Candidate],
    gate: Gate,
    conditions: Conditions,
    runtimes: Sequence[str] = (),
    batches: Sequence[int] = (),
) -> list[Case]:
    """One case per runtime and batch size, each with all candidates.

    Raises: UsageError for fewer than two candidates, or conditions that make no sense.
    """
    check(conditions)
    if len(candidates) < 2:
        advice = "Name two models, or one with --against or --python."
        raise UsageError("bench compares a baseline with at least one other model", next=advice)
    return [
        Case(
            ", ".join(filter(None, (name, f"batch {batch}" if batch else ""))) or PLAIN,
            labelled([under(c, name) for c in candidates] if name else candidates),
            replace(conditions, batch=batch or None),
            gate,
        )
        for name in (*runtimes,) or ("",)
        for batch in (*batches,) or (0,)
    ]


def check(conditions: Conditions) -> None:
    for what, value, allowed in (
        ("mode", conditions.mode, ("infer", "train")),
        ("dtype", conditions.dtype, ("", "float32", "float64", "float16", "bfloat16")),
        ("device", conditions.device.split(":")[0], ("cpu", "cuda", "mps")),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {what} {value!r}", next=f"Use {', '.join(filter(None, allowed))}.")


def two_sided(case: Case, other: Side, pythons: Sequence[str]) -> Case:
    """A case of one model twice, the first on another side: another revision, another interpreter, or
    both.
    """
    theirs, ours = [*pythons, "", ""][:2]
    for python in filter(None, (theirs, ours)):
        check_python(python)
    model = case.candidates[0]
    there = replace(model, ref=portable(model.ref), name=f"{model.name} at {other.label or theirs}")
    here = replace(model, ref=portable(model.ref))
    sides = {0: replace(other, python=theirs), 1: Side(python=ours, label="here")}
    name = model.name if case.name == PLAIN else f"{model.name}, {case.name}"
    return replace(case, name=name, candidates=(there, here), sides=sides)
