"""Baselines on disk: ratios to the reference workload timed in the same run, never raw times."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bntool.bench.gate import FAIL, INCONCLUSIVE, exit_code, overall, time_gate
from bntool.bench.judge import seconded
from bntool.bench.machine import fingerprint
from bntool.bench.plan import Case, Gate
from bntool.bench.protocol import Candidate, Conditions
from bntool.bench.result import CaseResult, Comparison, PairResult
from bntool.bench.statistics import Ratio
from bntool.bench.student import two_sided_p, two_sided_quantile
from bntool.bench.verdict import Verdict, decide, holm_levels
from bntool.errors import LoadError, RunError

KIND = "bntool-bench-baseline"
REFERENCE = Candidate("reference workload", "bntool.bench.reference:workload", reference=True)
REPLICATES = 6
#: what changes from machine to machine without changing what is measured
NOT_IDENTITY = ("inputs", "seed")


@dataclass(frozen=True)
class Entry:
    """log(model / reference): its mean over replicates, the standard error of that, and their number."""

    mean: float
    error: float
    replicates: int


def case_of(candidates: Sequence[Candidate], gate: Gate, conditions: Conditions) -> Case:
    """A case that times every candidate against the reference workload."""
    return Case("reference", (REFERENCE, *candidates), conditions, gate)


def entry(pair: PairResult) -> Entry:
    logs = np.array(pair.replicate_log_ratios)
    return Entry(float(logs.mean()), float(logs.std(ddof=1) / math.sqrt(len(logs))), len(logs))


def identity(case: CaseResult, machine: Mapping[str, Any]) -> str:
    from bntool.bench.reference import VERSION

    versions = dict(case.candidates[0].versions) | {"reference": str(VERSION)}
    kept = {k: v for k, v in case.conditions.items() if k not in NOT_IDENTITY}
    return fingerprint(machine, versions, kept | {"allocator": case.run["allocator"]})


def document(measured: Comparison) -> dict[str, Any]:
    """What to store of a run of `case_of`. Raises: RunError where a model could not be timed."""
    (case,) = measured.cases
    for figures in case.candidates:
        if figures.failure:
            what = f"it could not be timed, so nothing is stored: {figures.failure}"
            raise RunError(what, where=figures.name)
    return {
        "kind": KIND,
        "schema_version": 1,
        "fingerprint": identity(case, measured.machine),
        "machine": dict(measured.machine),
        "versions": dict(case.candidates[0].versions),
        "conditions": dict(case.conditions),
        "entries": {p.name: vars(entry(p)) for p in case.comparisons},
    }


def read(path: Path) -> dict[str, Any]:
    """Raises: LoadError for a file that is damaged, or that holds raw times."""
    again = "Store it again with --save-baseline."
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise LoadError(f"cannot read the baseline: {problem}", where=str(path), next=again) from None
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise LoadError(
            "this holds no ratios, and a stored time is no baseline: between two runs on one machine the "
            "same code raises false alarms in 15-51 % of comparisons, and hosted runners differ twofold",
            where=str(path),
            next="Store ratios to the reference workload with --save-baseline FILE.",
        )
    parts = {k: raw.get(k) for k in ("machine", "versions", "conditions", "entries")}
    damaged = [name for name, part in parts.items() if not isinstance(part, dict)]
    if damaged or not isinstance(raw.get("fingerprint"), str):
        raise LoadError(f"it has no {(damaged or ['fingerprint'])[0]}", where=str(path), next=again)
    for name, numbers in raw["entries"].items():
        if not sound(numbers):
            raise LoadError("an entry is not a finite number", where=f"{path}, {name}", next=again)
    return raw


def sound(numbers: Any) -> bool:
    """Whether an entry is what `entry` wrote: finite, with an error that is one."""
    wanted = {f.name for f in fields(Entry)}
    if not isinstance(numbers, dict) or set(numbers) != wanted:
        return False
    if not all(type(v) in (int, float) and math.isfinite(v) for v in numbers.values()):
        return False
    return bool(numbers["error"] >= 0 and numbers["replicates"] >= 2)


def check_names(stored: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises: LoadError when a model has no stored ratio: its gate would be off, and nobody would know."""
    missing = [name for name in names if name not in stored["entries"]]
    if missing:
        known = ", ".join(stored["entries"]) or "nothing"
        what = f"it holds no ratio for {missing[0]}; it has {known}"
        raise LoadError(what, where=where, next="Store it again with --save-baseline.")


def ratio_of(now: Entry, then: Entry, alpha: float) -> Ratio:
    """Welch's interval for the change of the ratio since it was stored.

    Source: Welch, The generalization of Student's problem, 1947.
    """
    gap, error = now.mean - then.mean, math.hypot(now.error, then.error)
    if error == 0.0:
        return Ratio(math.exp(gap), math.exp(gap), math.exp(gap), 1.0 - alpha, float(gap == 0.0))
    parts = [(e.error**4 / (e.replicates - 1)) for e in (now, then)]
    degrees = max(1, int(error**4 / sum(parts)))
    half = two_sided_quantile(alpha, degrees) * error
    p_value = two_sided_p(gap / error, degrees)
    return Ratio(math.exp(gap), math.exp(gap - half), math.exp(gap + half), 1.0 - alpha, p_value)


def against(measured: Comparison, stored: Mapping[str, Any], where: str, on_inconclusive: str) -> Comparison:
    """The run judged by what was stored: every model against its own stored ratio."""
    (case,) = measured.cases
    strange = (
        ""
        if stored["fingerprint"] == identity(case, measured.machine)
        else difference(case, measured, stored)
    )
    then = {name: Entry(**raw) for name, raw in stored["entries"].items()}
    alpha = 1.0 - case.run["confidence"]
    known = [p for p in case.comparisons if p.replicate_log_ratios]
    first = [ratio_of(entry(p), then[p.name], alpha) for p in known]
    levels = holm_levels([r.p_value for r in first], alpha)
    ratios = {p.name: ratio_of(entry(p), then[p.name], level) for p, level in zip(known, levels, strict=True)}
    pairs = [rejudged(p, case, ratios.get(p.name), strange, where) for p in case.comparisons]
    return with_pairs(measured, pairs, on_inconclusive)


def with_pairs(measured: Comparison, pairs: Sequence[PairResult], on_inconclusive: str) -> Comparison:
    (case,) = measured.cases
    failed = any(f.failure for f in case.candidates)
    code = exit_code(pairs, on_inconclusive, unmeasured=failed)
    return replace(measured, cases=(replace(case, comparisons=tuple(pairs)),), exit_code=code)


def confirmed(first: Comparison, again: Comparison, on_inconclusive: str) -> Comparison:
    """The first run, where a second one on fresh workers has been judged too: a failure that does not come
    back is inconclusive.
    """
    second = {p.name: p for p in again.comparisons}
    pairs = [
        seconded(p, second[p.name].ratio, second[p.name].clock, second[p.name].why) if p.clock == FAIL else p
        for p in first.comparisons
    ]
    return with_pairs(first, pairs, on_inconclusive)


def rejudged(p: PairResult, case: CaseResult, ratio: Ratio | None, strange: str, where: str) -> PairResult:
    """A comparison with the reference workload turned into one with the stored ratio."""
    if ratio is None or strange:
        unknown = Ratio(math.nan, 0.0, math.inf, 0.0, 1.0)
        verdict, clock, why = Verdict.INCONCLUSIVE, INCONCLUSIVE, strange or p.why
        return replace(p, baseline=where, ratio=ratio or unknown, **outcome(p, verdict, clock, why))
    latency = next((f.latency for f in case.candidates if f.name == p.name), None)
    now_s = latency.median.estimate_s if latency else math.nan
    verdict = decide(ratio, p.tolerance, p.floor_s, now_s / ratio.estimate)
    words = case.contention_words if verdict is Verdict.INCONCLUSIVE else ""
    clock = time_gate(verdict, ratio, Gate(p.tolerance, p.floor_s, p.min_speedup))
    return replace(p, baseline=where, ratio=ratio, **outcome(p, verdict, clock, words))


def outcome(p: PairResult, verdict: Verdict, clock: str, why: str) -> dict[str, Any]:
    return {"verdict": verdict, "clock": clock, "gate": overall(clock, p.budgets), "why": why}


def difference(case: CaseResult, measured: Comparison, stored: Mapping[str, Any]) -> str:
    """What has changed since the baseline was stored, so that its ratios say nothing here."""
    now = {**measured.machine, **case.candidates[0].versions, **case.conditions}
    then = {**stored["machine"], **stored["versions"], **stored["conditions"]}
    skipped = (*NOT_IDENTITY, "kernel", "memory_bytes")
    changed = [
        f"{k}: {then.get(k)} then, {now[k]} now" for k in now if k not in skipped and then.get(k) != now[k]
    ]
    return f"the baseline is from elsewhere ({'; '.join(changed[:3]) or 'other settings'})"
