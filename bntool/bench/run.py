"""A whole run: every case examined, timed, corrected as one family, confirmed where a gate fails,
summed up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bntool.bench.assemble import figures
from bntool.bench.candidates import LiveFolder
from bntool.bench.conduct import measure
from bntool.bench.contention import in_words
from bntool.bench.examine import Spawn, failure_of, prepare
from bntool.bench.gate import FAIL, exit_code
from bntool.bench.here import Here
from bntool.bench.judge import UNKNOWN, Timed, Waivers, confirmed, corrected, pair, waive
from bntool.bench.machine import describe
from bntool.bench.plan import Case, Effort
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.remote import Process, Remote, WorkerDied
from bntool.bench.result import CaseResult, Comparison
from bntool.bench.statistics import Ratio
from bntool.bench.waivers import expired
from bntool.errors import RunError
from bntool.progress import Progress, silent

ONE_PROCESS = "measured inside one process: the interval does not count what another process would draw"


def spawner(effort: Effort) -> Spawn:
    def spawn(side: Side, candidates: Mapping[int, Candidate], conditions: Conditions) -> Remote:
        return Process(side, candidates, conditions, allocator=effort.allocator, timeout_s=effort.timeout_s)

    return spawn


def run_cases(
    cases: Sequence[Case],
    effort: Effort,
    *,
    on_inconclusive: str = "pass",
    waivers: Waivers | None = None,
    live: LiveFolder | None = None,
    spawn: Spawn | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Measure every case and judge them together. Raises: LoadError, RunError when a baseline cannot run."""
    waivers = waivers or Waivers()
    family = sum(len(c.candidates) - 1 for c in cases)
    with tempfile.TemporaryDirectory(prefix="bntool-bench-") as folder:
        timed = []
        for number, case in enumerate(cases):
            progress(f"{case.name}: examining", number, len(cases))
            own = Path(folder, str(number))
            own.mkdir()
            timed.append(time_case(case, effort, own, live, spawn or spawner(effort), family, progress))
        results = [
            judge(t, ratios, effort, waivers, progress)
            for t, ratios in zip(timed, corrected(timed, effort.alpha), strict=True)
        ]
    return summed_up(results, on_inconclusive, waivers)


def time_case(
    case: Case,
    effort: Effort,
    folder: Path,
    live: LiveFolder | None,
    spawn: Spawn,
    family: int,
    progress: Progress,
) -> Timed:
    """Examine and time one case; inside this process where a live module cannot leave it."""
    stranded = bool(live and live.stranded)
    here = here_with(live) if live else spawn
    ready, seen = prepare(case, effort, here if stranded else spawn, folder)
    if live and not stranded and any(e.candidate.live and e.failure_code == 3 for e in seen):
        stranded = True
        ready, seen = prepare(case, effort, here, folder)
    failures = {i: e.failure for i, e in enumerate(seen) if e.failure}
    if 0 in failures:
        raise failure_of(seen[0], "the baseline cannot run: ")
    if len(failures) == len(seen) - 1:
        # nothing is left to compare: say why at once, in the first one's own words
        raise failure_of(seen[1])
    found = measure(
        ready,
        effort,
        here if stranded else spawn,
        failures=failures,
        family=family,
        progress=progress,
        one_process=stranded,
    )
    if 0 in found.failures:
        raise RunError(f"the baseline cannot be timed: {found.failures[0]}", where=case.candidates[0].name)
    return Timed(
        ready, seen, found, here if stranded else spawn, overhead(ready, here if stranded else spawn)
    )


def here_with(live: LiveFolder) -> Spawn:
    def spawn(side: Side, candidates: Mapping[int, Candidate], conditions: Conditions) -> Remote:
        return Here(live.models, candidates, conditions)

    return spawn


def overhead(case: Case, spawn: Spawn) -> Mapping[str, float]:
    """What the clock adds to a sample, asked of a worker that holds no model; nothing if it cannot say."""
    try:
        worker = spawn(case.side(0), {}, case.conditions)
    except WorkerDied:
        return {}
    try:
        return worker.ask("overhead")
    except WorkerDied:
        return {}
    finally:
        worker.close()


def judge(
    t: Timed, ratios: Mapping[int, Ratio], effort: Effort, waivers: Waivers, progress: Progress
) -> CaseResult:
    pairs = [pair(t, i, ratios.get(i, UNKNOWN), effort.alpha) for i in range(1, len(t.case.candidates))]
    if effort.confirm and not t.found.one_process:
        pairs = confirmed(t, pairs, effort, progress)
    pairs = [waive(p, waivers) if p.gate == FAIL else p for p in pairs]
    shown = [figures(t.case, i, t.seen[i], t.found) for i in range(len(t.case.candidates))]
    contention = tuple(r.contention for r in t.found.replicates)
    return CaseResult(
        t.case.name,
        tuple(shown),
        tuple(pairs),
        {k: v for k, v in t.case.conditions.to_dict().items() if k != "inputs"},
        run_facts(t, effort),
        contention,
        in_words(contention),
        tuple(raw(t)),
    )


def run_facts(t: Timed, effort: Effort) -> dict[str, Any]:
    """How the run went. Units: seconds; `outside_samples` is the share of sampling time that is not timed."""
    replicates = t.found.replicates
    timed = sum(s.took_s * r.loops[s.candidate] for r in replicates for s in r.samples)
    return {
        "replicates": len(replicates),
        "planned_looks": list(t.found.plan.replicates),
        "rounds": [len(r.times(0)) for r in replicates],
        "stopped": t.found.stopped,
        "sampling_s": t.found.sampling_s,
        "start_s": sum(r.start_s for r in replicates),
        "confidence": effort.confidence,
        "budget_s": effort.budget_s,
        "precision": effort.precision,
        "allocator": "default" if t.found.one_process else effort.allocator,
        "interleaving": "processes take turns" if t.case.apart else "within one process",
        "one_process": t.found.one_process,
        "clock_s_per_sample": t.overhead.get("sample_s"),
        "clock_s_per_call": t.overhead.get("call_s"),
        "outside_samples": 1.0 - timed / t.found.sampling_s if t.found.sampling_s else None,
    }


def raw(t: Timed) -> list[dict[str, Any]]:
    """Every sample, in the order taken, as columns. Units: seconds per call; `at_s` from the first sample."""
    return [
        {
            "loops": {str(k): v for k, v in r.loops.items()},
            "warm_s": {str(k): list(v) for k, v in r.warm_s.items()},
            "candidate": [s.candidate for s in r.samples],
            "at_s": [round(s.at_s - r.samples[0].at_s, 6) for s in r.samples],
            "took_s": [float(f"{s.took_s:.6g}") for s in r.samples],
        }
        for r in t.found.replicates
    ]


def summed_up(results: Sequence[CaseResult], on_inconclusive: str, waivers: Waivers) -> Comparison:
    pairs = [p for r in results for p in r.comparisons]
    unmeasured = any(f.failure for r in results for f in r.candidates)
    code = exit_code(pairs, on_inconclusive, unmeasured=unmeasured)
    notes = [ONE_PROCESS] if any(r.run["one_process"] for r in results) else []
    notes += [line for group in waivers.of.values() for line in expired(group, waivers.today)]
    return Comparison(tuple(results), describe(), code, tuple(notes))
