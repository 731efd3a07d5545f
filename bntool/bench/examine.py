"""Each candidate alone, in its own fresh process: cold start, peak memory, figures without a clock, outputs.

A candidate that fails here costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bntool.bench.equality import Answer
from bntool.bench.plan import Case, Effort
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.remote import CandidateError, Remote, WorkerDied
from bntool.bench.runtimes import runtime
from bntool.errors import BntoolError, LoadError, RunError, UsageError

#: the file in a candidate's folder that holds its inputs: the first one's are for all
INPUTS = "inputs.pt"

#: starts a worker for these candidates (by number) on a side
Spawn = Callable[[Side, Mapping[int, Candidate], Conditions], Remote]


@dataclass(frozen=True)
class Examination:
    """What a candidate is, before any comparison. `failure` is empty unless it could not be run.

    `items` is how many samples one call holds. Units: seconds, bytes. `cold` has `load_s`, `first_s` and,
    if anything was built, `build_s`.
    """

    candidate: Candidate
    cold: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    items: int | None = None
    failure: str = ""
    failure_code: int | None = None


def prepare(case: Case, effort: Effort, spawn: Spawn, folder: Path) -> tuple[Case, list[Examination]]:
    """Examine every candidate, the one first whose inputs all share.

    The case comes back knowing its inputs and what was built. If the first one fails, nobody else is
    examined.
    """
    giver = next(i for i, c in enumerate(case.candidates) if not c.reference)
    first = attempt(case, giver, effort, spawn, folder)
    if first.failure:
        others = [
            Examination(c, failure=f"not examined: {first.candidate.name} failed") for c in case.candidates
        ]
        return case, [first if i == giver else other for i, other in enumerate(others)]
    inputs = str(folder / f"candidate{giver}" / INPUTS)
    case = replace(case, conditions=replace(case.conditions, inputs=inputs, items=first.items))
    seen = [
        first if i == giver else attempt(case, i, effort, spawn, folder) for i in range(len(case.candidates))
    ]
    return replace(case, candidates=tuple(e.candidate for e in seen)), seen


def attempt(case: Case, index: int, effort: Effort, spawn: Spawn, folder: Path) -> Examination:
    """The examination, or why there is none."""
    try:
        return examine(case, index, effort, spawn, folder)
    except (CandidateError, WorkerDied) as problem:
        code = problem.code if isinstance(problem, CandidateError) else None
        return Examination(case.candidates[index], failure=problem.message, failure_code=code)


def failure_of(seen: Examination, what: str = "") -> BntoolError:
    """Why a candidate failed as an error of this process, with the exit code that the worker's had."""
    kinds: dict[int | None, type[BntoolError]] = {2: UsageError, 3: LoadError}
    message = seen.failure.removesuffix(".")
    where = "" if seen.candidate.ref in message else seen.candidate.name
    return kinds.get(seen.failure_code, RunError)(f"{what}{message}", where=where)


def examine(case: Case, index: int, effort: Effort, spawn: Spawn, folder: Path) -> Examination:
    """Raises: CandidateError, WorkerDied."""
    candidate, cold = case.candidates[index], {}
    own = folder / f"candidate{index}"
    own.mkdir(exist_ok=True)
    if runtime(candidate.runtime).builds:
        built = _alone(
            case, index, candidate, spawn, lambda w: w.ask("build", candidate=index, folder=str(own))
        )
        candidate, cold = replace(candidate, artefact=built["artefact"]), {"build_s": built["build_s"]}
    seen: Examination = _alone(
        case, index, candidate, spawn, lambda w: look(w, index, candidate, cold, own, effort)
    )
    return seen


def _alone(case: Case, index: int, candidate: Candidate, spawn: Spawn, use: Callable[[Remote], Any]) -> Any:
    worker = spawn(case.side(index), {index: candidate}, case.conditions)
    try:
        return use(worker)
    finally:
        worker.close()


def look(
    worker: Remote, index: int, candidate: Candidate, cold: dict[str, float], own: Path, effort: Effort
) -> Examination:
    cold = cold | worker.ask("open", candidate=index)
    memory = worker.ask("peak", candidate=index)
    answer = answer_of(worker, index, own / "outputs.npz")
    facts = worker.ask("facts", candidate=index)
    profile = worker.ask("profile", candidate=index)["seconds"] if effort.profile else {}
    items = worker.ask("save_inputs", candidate=index, path=str(own / INPUTS))["items"]
    return Examination(candidate, cold, memory, facts, profile, worker.ask("versions"), answer, items)


def answer_of(worker: Remote, index: int, path: Path) -> Answer:
    said = worker.ask("outputs", candidate=index, path=str(path))
    with np.load(path) as saved:
        arrays = tuple(saved[str(i)] for i in range(len(saved.files)))
    return Answer(tuple(said["names"]), arrays, said["why"], said["repeats"])
