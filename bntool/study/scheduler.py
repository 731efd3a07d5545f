"""Ask claims which trials they need, run those, and again, until every claim can be judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bntool.progress import Progress, silent
from bntool.study.backends import Backend, Here
from bntool.study.claims.base import Claim, Finding, Known, Needed
from bntool.study.claims.unlearnt import unless_learnt
from bntool.study.journal import Journal
from bntool.study.plan import Plan
from bntool.study.setting import Setting
from bntool.study.trial import COST, Trial


@dataclass
class Pace:
    """Progress with the time left, from what trials were expected to take and what they have taken."""

    progress: Progress
    expected: dict[str, float]
    workers: int = 1
    done: set[str] = field(default_factory=set)
    spent_s: float = 0.0
    predicted_s: float = 0.0

    def finished(self, trial: Trial, taken_s: float) -> None:
        self.done.add(trial.key)
        self.spent_s += taken_s
        self.predicted_s += self.expected.get(trial.key, taken_s)
        total = max(len(self.expected), len(self.done))
        self.progress(f"{trial.norm}, {self.left()} left", len(self.done), total)

    def left(self) -> str:
        slower = self.spent_s / self.predicted_s if self.predicted_s else 1.0
        seconds = slower * max(0.0, sum(self.expected.values()) - self.predicted_s) / self.workers
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def investigate(
    plan: Plan,
    claims: Sequence[Claim],
    setting: Setting,
    journal: Journal,
    backend: Backend,
    *,
    expected_s: dict[str, float] | None = None,
    progress: Progress = silent,
    watch: Callable[[Trial, dict[str, Any]], None] | None = None,
) -> list[Finding]:
    """Findings in the order of the claims. Every finished trial is in the journal before the next is
    taken.
    """
    pace = Pace(progress, expected_s or {}, backend.workers)
    while True:
        needed, findings = open_questions(plan, claims, journal)
        if not needed:
            return findings
        # timings want the machine for themselves: they come last and run here
        quiet = [t for t in needed if COST in t.measures]
        busy = [t for t in needed if COST not in t.measures]
        runner = backend if busy else Here()
        for trial, result in runner.run(setting, busy or quiet):
            journal.add(trial, result)
            pace.finished(trial, result["wall_s"])
            if watch is not None:
                watch(trial, result)


def open_questions(
    plan: Plan, claims: Sequence[Claim], journal: Journal
) -> tuple[list[Trial], list[Finding]]:
    """Trials that some claim still needs, each once and longest first; the findings once there are none."""
    needed: dict[str, Trial] = {}
    findings = []
    for claim in claims:
        try:
            known = Known(journal.results)
            findings.append(unless_learnt(claim.judge(plan, known), known.asked.values()))
        except Needed as need:
            needed.update({t.key: t for t in need.trials})
    return sorted(needed.values(), key=lambda t: (-t.steps, t.key)), findings
