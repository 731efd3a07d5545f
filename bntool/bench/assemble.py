"""From measurements to figures, ratios and verdicts: what a case's report says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bntool.bench.conduct import Measurement
from bntool.bench.contention import in_words
from bntool.bench.equality import OutputError, allowed_error, compare_outputs
from bntool.bench.examine import Examination
from bntool.bench.norm_names import norm_of
from bntool.bench.percentiles import Percentile, percentile
from bntool.bench.plan import Case
from bntool.bench.protocol import Sample
from bntool.bench.result import Figures, Latency
from bntool.bench.sequential import detectable
from bntool.bench.statistics import Ratio, interval, spread
from bntool.bench.verdict import Verdict, margin

#: a hypervisor that takes more than this share leaves nothing to be concluded
MOST_STEAL = 0.2


def figures(case: Case, index: int, seen: Examination, found: Measurement) -> Figures:
    failure = found.failures.get(index, "")
    return Figures(
        case=case.name,
        name=seen.candidate.name,
        runtime=seen.candidate.runtime,
        failure=failure,
        latency=latency(case, index, found) if not failure else None,
        cold=seen.cold,
        memory=seen.memory,
        page_faults=page_faults(found, index),
        facts=seen.facts,
        profile=seen.profile,
        norm_share=norm_share(seen.profile),
        versions=seen.versions,
    )


def samples_of(found: Measurement, index: int) -> list[Sample]:
    return [s for r in found.replicates for s in r.samples if s.candidate == index]


def latency(case: Case, index: int, found: Measurement) -> Latency | None:
    times = [r.times(index) for r in found.replicates if len(r.times(index))]
    if not times:
        return None
    taken = [s.took_s for s in samples_of(found, index)]
    median = median_over(times)
    rate = case.conditions.items / median.estimate_s if case.conditions.items else None
    return Latency(median, percentile(taken, 0.9), percentile(taken, 0.99), len(taken), rate)


def median_over(times: Sequence[np.ndarray[Any, Any]]) -> Percentile:
    """The median of all samples, with Student's interval over the replicates' medians (on the log scale)."""
    spread = interval([float(np.log(np.median(t))) for t in times], 0.05)
    if len(times) < 2:
        one = percentile(times[0].tolist(), 0.5)
        return one or Percentile(float(np.median(times[0])), math.nan, math.nan)
    return Percentile(spread.estimate, spread.low, spread.high)


def page_faults(found: Measurement, index: int) -> float | None:
    faults = [s.faults for s in samples_of(found, index)]
    return float(np.median(faults)) if faults else None


def norm_share(profile: dict[str, float]) -> float | None:
    """The share of profiled time that norms take."""
    total = sum(profile.values())
    return sum(t for name, t in profile.items() if norm_of(name)) / total if total else None


def output_error(baseline: Examination, other: Examination, declared: str) -> OutputError | None:
    """The candidate's outputs against the baseline's, or None where either has none."""
    if baseline.failure or other.failure or baseline.candidate.reference:
        return None
    dtypes = [declared, *(str(e.facts.get("dtype", "")) for e in (baseline, other))]
    layers = max(int(e.facts.get("layers", 1)) for e in (baseline, other))
    return compare_outputs(baseline.answer, other.answer, allowed_error(dtypes, layers))


def without_waiting(found: Measurement, index: int) -> float:
    """The ratio with the time taken out in which a thread was ready and had no CPU."""
    logs = []
    for replicate in found.replicates:
        busy = {
            c: [max(s.took_s - s.waited_s, 0.01 * s.took_s) for s in replicate.samples if s.candidate == c]
            for c in (0, index)
        }
        if busy[0] and len(busy[0]) == len(busy[index]):
            logs.append(float(np.median(np.log(busy[index]) - np.log(busy[0]))))
    return math.exp(float(np.mean(logs))) if logs else math.nan


def doubted(case: Case, found: Measurement, index: int, verdict: Verdict, ratio: Ratio) -> str:
    """Why the evidence of contention overrules a verdict, or ""."""
    steal = [r.contention.steal for r in found.replicates if r.contention.steal is not None]
    if steal and float(np.mean(steal)) > MOST_STEAL:
        return f"the hypervisor gave {np.mean(steal):.0%} of the CPU time to other machines"
    if verdict not in (Verdict.SLOWER, Verdict.FASTER):
        return ""
    bound = margin(case.gate.tolerance, case.gate.floor_s, found.baseline_s())
    busy = without_waiting(found, index)
    explained = 1.0 / bound <= busy <= bound
    return (
        f"without the time spent waiting for a CPU the ratio is {busy:.3f}, not {ratio.estimate:.3f}"
        if explained
        else ""
    )


def explanation(verdict: Verdict, found: Measurement, index: int, alpha: float) -> str:
    """Why a comparison stayed inconclusive, in words."""
    if verdict is not Verdict.INCONCLUSIVE:
        return ""
    between, _ = spread(found.pairs(index))
    size = detectable(between, found.plan, alpha)
    # with one process there is no spread between processes to say anything from
    able = f"a full run would find a change of {size:.1%}" if math.isfinite(size) else ""
    return "; ".join(filter(None, [found.stopped, able, in_words([r.contention for r in found.replicates])]))
