"""The verb: time models against a baseline, each with a ratio, an interval and a verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bntool.bench.candidates import LiveFolder, from_models
from bntool.bench.cases import spread_out, two_sided, with_file
from bntool.bench.plan import Budgets, Case, Effort, Gate
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.result import Comparison
from bntool.bench.revision import revision_in, side_of
from bntool.bench.run import run_cases
from bntool.errors import UsageError
from bntool.progress import Progress, silent


def bench(
    models: Sequence[Any] | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    tolerance: float = 0.05,
    floor_s: float = 0.0,
    min_speedup: float | None = None,
    budgets: Budgets | Mapping[str, Any] | None = None,
    budget_s: float = 10.0,
    precision: float | None = None,
    replicates: int | None = None,
    confidence: float = 0.95,
    runtimes: Sequence[str] = (),
    batch: Sequence[int] = (),
    threads: int = 1,
    device: str = "cpu",
    dtype: str = "",
    channels_last: bool = False,
    mode: str = "infer",
    inputs: Sequence[str] = (),
    trust: bool = False,
    weights: str | Path | None = None,
    against: str | None = None,
    pythons: Sequence[str] = (),
    allocator: str = "fixed",
    confirm: bool = True,
    profile: bool = False,
    on_inconclusive: str = "pass",
    flush_l2: bool = False,
    timeout_s: float = 600.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Time models against the first of them, interleaved in fresh worker processes.

    `models` are live modules, exported or ONNX models, or references (`nets.py:resnet@onnx(threads=1)`); a
    mapping gives them names. All of them run on `example_inputs` (default: the baseline's own, or `inputs`
    written as on the command line). `runtimes` and `batch` make one case each: every model under every one.
    `budget_s` is sampling time per case; `precision` 0.01 asks for intervals of at most +-1 %.
    `against="git:origin/main"` compares every model with itself at that revision; `pythons` names the
    interpreter of the baseline's side and, if there are two, of the other: then one model is enough.

    Live modules travel to the workers as pickles that only this run reads. Where that is impossible the case
    is measured inside this process, on copies, and the report says so.

    Raises: UsageError for options that make no sense, LoadError and RunError when the baseline cannot run.
    """
    limits = budgets if isinstance(budgets, Budgets) else Budgets.from_dict(budgets or {})
    gate = Gate(tolerance, floor_s, min_speedup, limits)
    effort = Effort(budget_s, precision, replicates, confidence, confirm, allocator, timeout_s, seed, profile)
    conditions = Conditions(
        specs=tuple(inputs),
        dtype=dtype,
        device=device,
        channels_last=channels_last,
        mode=mode,
        threads=threads,
        seed=seed,
        flush_l2=flush_l2,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bntool-live-")))
        live = LiveFolder(folder)
        named = [with_file(c, trust, weights) for c in from_models(models, live)]
        if example_inputs is not None:
            conditions = replace(conditions, inputs=save(example_inputs, folder))
        if against or pythons:
            other = stack.enter_context(side_of(revision_in(against))) if against else Side()
            cases = apart(named, gate, conditions, runtimes, batch, other, pythons)
        else:
            cases = spread_out(named, gate, conditions, runtimes, batch)
        return run_cases(cases, effort, on_inconclusive=on_inconclusive, live=live, progress=progress)


def apart(
    candidates: Sequence[Candidate],
    gate: Gate,
    conditions: Conditions,
    runtimes: Sequence[str],
    batch: Sequence[int],
    other: Side,
    pythons: Sequence[str],
) -> list[Case]:
    """Each candidate against itself elsewhere, under every runtime and batch size."""
    if any(c.live for c in candidates):
        raise UsageError("live modules have no other revision or environment", next="Pass references.")
    return [
        two_sided(case, other, pythons)
        for c in candidates
        for case in spread_out([c, c], gate, conditions, runtimes, batch)
    ]


def save(inputs: Any, folder: Path) -> str:
    import torch

    path = folder / "given_inputs.pt"
    torch.save(inputs, path)
    return str(path)
