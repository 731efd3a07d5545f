"""The verb: time models against a baseline, each with a ratio, an interval and a verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bntool.bench.candidates import LiveFolder, from_models, labelled, under
from bntool.bench.judge import Waivers
from bntool.bench.plan import Budgets, Case, Effort, Gate
from bntool.bench.protocol import Candidate, Conditions
from bntool.bench.result import Comparison
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
    with tempfile.TemporaryDirectory(prefix="bntool-live-") as folder:
        live = LiveFolder(Path(folder))
        named = [with_file(c, trust, weights) for c in from_models(models, live)]
        if example_inputs is not None:
            conditions = replace(conditions, inputs=save(example_inputs, Path(folder)))
        cases = spread_out(named, gate, conditions, runtimes, batch)
        return run_cases(
            cases, effort, on_inconclusive=on_inconclusive, waivers=Waivers(), live=live, progress=progress
        )


def with_file(candidate: Candidate, trust: bool, weights: str | Path | None) -> Candidate:
    return replace(candidate, trust=trust, weights=str(weights) if weights else None)


def save(inputs: Any, folder: Path) -> str:
    import torch

    path = folder / "given_inputs.pt"
    torch.save(inputs, path)
    return str(path)


def spread_out(
    candidates: Sequence[Candidate],
    gate: Gate,
    conditions: Conditions,
    runtimes: Sequence[str],
    batches: Sequence[int],
) -> list[Case]:
    """One case per runtime and batch size, each with all candidates. Raises: UsageError for fewer than
    two.
    """
    if len(candidates) < 2:
        raise UsageError("bench compares a baseline with at least one other model", next="Name two models.")
    check(conditions)
    cases = []
    for name in runtimes or [""]:
        chosen = [under(c, name) for c in candidates] if name else list(candidates)
        for batch in (*batches,) or (None,):
            parts = [name] if name else []
            parts += [f"batch {batch}"] if batch else []
            cases.append(
                Case(", ".join(parts) or "bench", labelled(chosen), replace(conditions, batch=batch), gate)
            )
    return cases


def check(conditions: Conditions) -> None:
    for what, value, allowed in (
        ("mode", conditions.mode, ("infer", "train")),
        ("dtype", conditions.dtype, ("", "float32", "float64", "float16", "bfloat16")),
        ("device", conditions.device.split(":")[0], ("cpu", "cuda", "mps")),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {what} {value!r}", next=f"Use {', '.join(filter(None, allowed))}.")
