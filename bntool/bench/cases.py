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
from bntool.bench.runtimes import runtime
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
    for candidate in [under(c, name) if name else c for c in candidates for name in (*runtimes,) or ("",)]:
        check_runtime(candidate, conditions)
    if any(b < 1 for b in batches):
        raise UsageError("a batch holds at least one sample", where="--batch", next="Write 1,8,32.")
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
    if conditions.flush_l2 and not conditions.device.startswith("cuda"):
        raise UsageError("only a CUDA device can flush it", where="--flush-l2", next="Add --device cuda.")


def check_runtime(candidate: Candidate, conditions: Conditions) -> None:
    """Raises: UsageError for what the runtime would silently do otherwise: infer, or run on the CPU."""
    known = runtime(candidate.runtime)
    if conditions.mode == "train" and not known.trains:
        raise UsageError("it only infers", where=f"@{known.name}", next="Leave --mode train out.")
    if conditions.device.partition(":")[0] not in known.devices:
        where = ", ".join(known.devices)
        raise UsageError(
            f"it does not run on {conditions.device}", where=f"@{known.name}", next=f"Use {where}."
        )


def two_sided(case: Case, other: Side, pythons: Sequence[str]) -> Case:
    """A case of one model twice, the first on another side: another revision, another interpreter, or
    both.
    """
    theirs, ours = [*pythons, "", ""][:2]
    for python in filter(None, (theirs, ours)):
        check_python(python)
    model = case.candidates[0]
    # weights are a file of the user's here, seldom part of a revision
    weights = str(Path(model.weights).resolve()) if model.weights else None
    here = replace(model, ref=portable(model.ref) if other.root else model.ref, weights=weights)
    there = replace(here, name=f"{model.name} at {other.label or theirs}")
    sides = {0: replace(other, python=theirs), 1: Side(python=ours, label="here")}
    name = model.name if case.name == PLAIN else f"{model.name}, {case.name}"
    return replace(case, name=name, candidates=(there, here), sides=sides)
