"""The timed part of a run: replicates of fresh workers, interleaved rounds, planned looks.

A candidate that dies in the middle is taken out and its replicate is repeated without it; no sample of the
others is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bntool.bench.contention import Contention, Moment, between
from bntool.bench.examine import Spawn
from bntool.bench.gate import INCONCLUSIVE, time_gate
from bntool.bench.plan import Case, Effort
from bntool.bench.protocol import Sample, Side
from bntool.bench.remote import CandidateError, Remote, WorkerDied
from bntool.bench.sampling import balanced_orders, in_time, loops_for, rounds_for
from bntool.bench.sequential import APART, SHARED, Look, Looks, fixed, look_at
from bntool.bench.statistics import Array, blocks, center, log_ratios
from bntool.bench.verdict import decide
from bntool.errors import RunError
from bntool.progress import Progress

#: samples a side takes in one turn when sides live in different processes
BURST = 3


@dataclass(frozen=True)
class Replicate:
    """One set of fresh workers. `warm_s` are the warm-up times, `loops` the calls per sample, by
    candidate.
    """

    samples: tuple[Sample, ...]
    warm_s: Mapping[int, tuple[float, ...]]
    loops: Mapping[int, int]
    contention: Contention
    sampling_s: float
    start_s: float

    def times(self, candidate: int) -> Array:
        """Seconds per call, one value a round: the median where a round took several samples."""
        rounds: dict[int, list[float]] = {}
        for s in self.samples:
            if s.candidate == candidate:
                rounds.setdefault(s.round, []).append(s.took_s)
        return np.array([float(np.median(rounds[r])) for r in sorted(rounds)])


@dataclass
class Measurement:
    """Everything that was timed in a case. `failures` maps a candidate's number to why it was taken out."""

    replicates: list[Replicate] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    looks: dict[int, Look] = field(default_factory=dict)
    plan: Looks = SHARED
    one_process: bool = False
    stopped: str = ""

    @property
    def sampling_s(self) -> float:
        return sum(r.sampling_s for r in self.replicates)

    def pairs(self, candidate: int) -> list[Array]:
        """Log-ratios to candidate 0, one array a replicate."""
        return [
            log_ratios(r.times(candidate), r.times(0)) for r in self.replicates if len(r.times(candidate))
        ]

    def centers(self, candidate: int) -> list[float]:
        """What the interval is made of: a number per replicate, or per run of rounds where there is one
        process.
        """
        if self.one_process:
            return [center(b) for p in self.pairs(candidate) for b in blocks(p)]
        return [center(p) for p in self.pairs(candidate)]

    def baseline_s(self) -> float:
        return float(np.median([np.median(r.times(0)) for r in self.replicates]))


def measure(
    case: Case,
    effort: Effort,
    spawn: Spawn,
    *,
    failures: Mapping[int, str],
    family: int,
    progress: Progress,
    one_process: bool = False,
) -> Measurement:
    """Replicate until every comparison is decided or precise, or the budget is spent, looking only when
    planned.

    `family` is how many comparisons the whole run makes: each is given its share of alpha while deciding to
    stop.
    """
    plan = fixed(effort.replicates) if effort.replicates else APART if case.apart else SHARED
    plan = fixed(1) if one_process else plan
    found = Measurement(failures=dict(failures), plan=plan, one_process=one_process)
    rng = np.random.default_rng(effort.seed)
    for index, count in enumerate(plan.replicates):
        while len(found.replicates) < count and playable(case, found):
            progress(f"{case.name}: timing", len(found.replicates), plan.most)
            add_replicate(case, effort, spawn, found, rng)
        if not playable(case, found):
            found.stopped = "nothing left to compare"
            return found
        found.looks = look_all(case, found, index, effort.alpha / max(family, 1))
        found.stopped = reason_to_stop(case, effort, found)
        if found.stopped:
            return found
    found.stopped = f"all {plan.most} replicates are done"
    return found


def playable(case: Case, found: Measurement) -> bool:
    return 0 not in found.failures and len(found.failures) < len(case.candidates) - 1


def look_all(case: Case, found: Measurement, index: int, alpha: float) -> dict[int, Look]:
    living = [c for c in range(1, len(case.candidates)) if c not in found.failures]
    return {c: look_at(found.centers(c), found.plan, index, alpha) for c in living}


def reason_to_stop(case: Case, effort: Effort, found: Measurement) -> str:
    gate, baseline = case.gate, found.baseline_s()
    ratios = [look.ratio for look in found.looks.values()]
    clocks = [time_gate(decide(r, gate.tolerance, gate.floor_s, baseline), r, gate) for r in ratios]
    if effort.precision is not None:
        if all(r.half_width <= effort.precision for r in ratios):
            return "every interval is as precise as asked for"
    elif INCONCLUSIVE not in clocks:
        return "every comparison is decided"
    return "the budget is spent" if found.sampling_s >= effort.budget_s else ""


def add_replicate(
    case: Case, effort: Effort, spawn: Spawn, found: Measurement, rng: np.random.Generator
) -> None:
    """One more replicate, or the removal of a candidate that cannot be timed."""
    living = [i for i in range(len(case.candidates)) if i not in found.failures]
    try:
        found.replicates.append(replicate(case, effort, spawn, living, found.plan, rng))
    except Blamed as blame:
        found.failures[blame.candidate] = blame.message


class Blamed(Exception):  # it names somebody
    """A candidate broke its replicate."""

    def __init__(self, candidate: int, message: str) -> None:
        self.candidate, self.message = candidate, message
        super().__init__(message)


class Crew:
    """The workers of one replicate: one per side, each holding the candidates that live there."""

    def __init__(self, case: Case, spawn: Spawn, living: list[int]) -> None:
        self.home: dict[int, Remote] = {}
        self.workers: list[Remote] = []
        sides: dict[Side, list[int]] = {}
        for index in living:
            sides.setdefault(case.side(index), []).append(index)
        try:
            for side, members in sides.items():
                worker = spawn(side, {i: case.candidates[i] for i in members}, case.conditions)
                self.workers.append(worker)
                self.home |= dict.fromkeys(members, worker)
        except (CandidateError, WorkerDied) as problem:
            self.close()
            raise RunError(f"a worker cannot be started: {problem.message}", where=case.name) from None
        except BaseException:
            self.close()
            raise

    def ask(self, member: int, op: str, **args: object) -> dict[str, object]:
        """Ask the worker that holds candidate `member`. Raises: Blamed."""
        try:
            return self.home[member].ask(op, **args)
        except (CandidateError, WorkerDied) as problem:
            culprit = member if problem.candidate is None else problem.candidate
            raise Blamed(culprit, problem.message) from None

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def replicate(
    case: Case, effort: Effort, spawn: Spawn, living: list[int], plan: Looks, rng: np.random.Generator
) -> Replicate:
    started = time.perf_counter()
    crew = Crew(case, spawn, living)
    try:
        # who is loaded first finds an emptier heap: that luck, too, must not fall on the same one every time
        for index in rng.permutation(living):
            crew.ask(int(index), "open", candidate=int(index))
        warm = {i: warmed(crew, i) for i in living}
        start_s = time.perf_counter() - started
        loops = {i: loops_for(float(np.median(warm[i][-5:]))) for i in living}
        round_s = sum(loops[i] * float(np.median(warm[i][-5:])) for i in living) * (
            BURST + 1 if case.apart else 1
        )
        share_s = effort.budget_s / plan.most
        orders = orders_of(rng, living, rounds_for(share_s, round_s, candidates=len(living)))
        before, began = Moment.now(), time.perf_counter()
        samples = (turns if case.apart else together)(crew, orders, loops, share_s)
        seconds = time.perf_counter() - began
    finally:
        crew.close()
    return Replicate(tuple(samples), warm, loops, seen(before, samples, loops, seconds), seconds, start_s)


def warmed(crew: Crew, index: int) -> tuple[float, ...]:
    times = crew.ask(index, "warm", candidate=index)["times_s"]
    assert isinstance(times, list)
    return tuple(times)


def orders_of(rng: np.random.Generator, living: list[int], rounds: int) -> list[list[int]]:
    return [[living[place] for place in order] for order in balanced_orders(rng, len(living), rounds)]


def together(crew: Crew, orders: list[list[int]], loops: Mapping[int, int], most_s: float) -> list[Sample]:
    """All rounds inside one worker: nothing but the models runs between two samples."""
    counts = {str(i): n for i, n in loops.items()}
    raw = crew.ask(orders[0][0], "sample", orders=orders, loops=counts, most_s=most_s)
    return samples_in(raw)


def turns(crew: Crew, orders: list[list[int]], loops: Mapping[int, int], most_s: float) -> list[Sample]:
    """Sides take turns, a short burst each; each sample follows an untimed call, which wakes its process
    up.
    """
    samples = []
    for number, order in in_time(orders, most_s):
        for index in order:
            raw = crew.ask(
                index, "sample", orders=[[index]] * BURST, loops={str(index): loops[index]}, prime=True
            )
            samples += [Sample(**{**vars(s), "round": number}) for s in samples_in(raw)]
    return samples


def samples_in(raw: Mapping[str, object]) -> list[Sample]:
    rows = raw["samples"]
    assert isinstance(rows, list)
    return [Sample.from_list(row) for row in rows]


def seen(before: Moment, samples: list[Sample], loops: Mapping[int, int], seconds: float) -> Contention:
    timed = sum(s.took_s * loops[s.candidate] for s in samples)
    waited = sum(s.waited_s * loops[s.candidate] for s in samples)
    switches = sum(s.switches for s in samples)
    return between(before, Moment.now(), seconds, waited=float(waited / max(timed, 1e-12)), switches=switches)
