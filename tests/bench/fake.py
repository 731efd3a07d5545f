"""A machine that is made up: workers that answer from a seeded generator, with luck per process and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bntool.bench.plan import Case, Effort, Gate
from bntool.bench.protocol import Candidate, Conditions, Sample, Side
from bntool.bench.remote import CandidateError, WorkerDied


@dataclass
class Machine:
    """`costs` maps a candidate's reference to seconds per call; `between` and `within` are log-scale
    spreads.

    `waits` is time per call spent waiting, by reference. `breaks` maps a reference to the operation at
    which it raises, `kills` to the one at which its process dies. `answers` are the outputs.
    """

    costs: dict[str, float]
    between: float = 0.003
    within: float = 0.02
    waits: dict[str, float] = field(default_factory=dict)
    breaks: dict[str, str] = field(default_factory=dict)
    kills: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    change: Callable[[int], float] = lambda process: 1.0
    seed: int = 0
    processes: int = 0
    open_now: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.now = 0.0

    def spawn(self, side: Side, candidates: Mapping[int, Candidate], conditions: Conditions) -> Worker:
        self.processes += 1
        self.open_now += 1
        return Worker(self, dict(candidates), self.processes)


class Worker:
    """One made-up process: every candidate in it has its own luck for as long as it lives."""

    def __init__(self, machine: Machine, candidates: dict[int, Candidate], number: int) -> None:
        self.machine, self.candidates, self.number = machine, candidates, number
        self.luck = {i: float(np.exp(machine.between * machine.rng.standard_normal())) for i in candidates}

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        index = args.get("candidate")
        for i in [index] if index is not None else self.candidates:
            self.misfortune(i, op)
        return getattr(self, op)(**args)

    def misfortune(self, index: int, op: str) -> None:
        ref = self.candidates[index].ref
        if self.machine.breaks.get(ref) == op:
            raise CandidateError(f"{ref} broke", candidate=index)
        if self.machine.kills.get(ref) == op:
            raise WorkerDied("the process was killed by SIGKILL (often: out of memory)", index)

    def close(self) -> None:
        self.machine.open_now -= 1

    def save_inputs(self, candidate: int, path: str) -> dict[str, Any]:
        return {"items": 4}

    def build(self, candidate: int, folder: str) -> dict[str, Any]:
        return {"artefact": folder + "/model.onnx", "build_s": 1.5}

    def open(self, candidate: int) -> dict[str, Any]:
        return {"load_s": 0.5, "first_s": 0.25}

    def peak(self, candidate: int) -> dict[str, Any]:
        return {"peak_rss_bytes": 100_000_000, "forward_bytes": 1_000_000}

    def outputs(self, candidate: int, path: str) -> dict[str, Any]:
        ref = self.candidates[candidate].ref
        np.savez(path, **{"0": np.array([self.machine.answers.get(ref, [1.0, 2.0])], dtype=np.float32)})
        return {"names": [""], "why": "", "repeats": True}

    def facts(self, candidate: int) -> dict[str, Any]:
        known = {"params": 10, "size_bytes": 40, "macs": 100, "ops": 5, "norms": 2, "layers": 2}
        return known | self.machine.facts.get(self.candidates[candidate].ref, {})

    def profile(self, candidate: int) -> dict[str, Any]:
        return {"seconds": {"convolution": 0.003, "native_batch_norm": 0.001}}

    def versions(self) -> dict[str, str]:
        return {"torch": "2.0"}

    def overhead(self) -> dict[str, float]:
        return {"sample_s": 1e-7, "call_s": 4e-8}

    def warm(self, candidate: int) -> dict[str, Any]:
        return {"times_s": [self.once(candidate) for _ in range(10)]}

    def once(self, index: int) -> float:
        machine, ref = self.machine, self.candidates[index].ref
        noise = float(np.exp(machine.within * machine.rng.standard_t(4)))
        drift = 1.0 + 0.2 * np.sin(machine.now)
        speed = machine.change(self.number) if index else 1.0
        took = machine.costs[ref] * self.luck[index] * noise * drift * speed + machine.waits.get(ref, 0.0)
        machine.now += took
        return took

    def sample(
        self, orders: list[list[int]], loops: dict[str, int], prime: bool = False, most_s: float = 0.0
    ) -> dict[str, Any]:
        rows = []
        for number, order in enumerate(orders):
            for index in order:
                wait = self.machine.waits.get(self.candidates[index].ref, 0.0)
                taken = Sample(index, number, self.machine.now, self.once(index), wait, 0.0, 0)
                rows.append(taken.to_list())
        return {"samples": rows}


def case(*refs: str, gate: Gate | None = None, apart: bool = False, name: str = "case") -> Case:
    sides = {0: Side(root="elsewhere")} if apart else {}
    chosen = tuple(Candidate(f"{ref} #{i}", ref) for i, ref in enumerate(refs))
    return Case(name, chosen, Conditions(), gate or Gate(), sides)


#: enough rounds for steady medians, and the made-up clock is free
EFFORT = Effort(budget_s=6.0)
