"""What a bench found, as values: figures per candidate, a ratio and a verdict per comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bntool.bench.contention import Contention
from bntool.bench.equality import OutputError
from bntool.bench.percentiles import Percentile
from bntool.bench.statistics import Ratio
from bntool.bench.verdict import Verdict
from bntool.result import SCHEMA_VERSION


@dataclass(frozen=True)
class Latency:
    """Time per call. The median's interval is over replicates; p90 and p99 are None where n cannot carry
    them.

    Units: seconds; `throughput` is samples of the batch per second at the median.
    """

    median: Percentile
    p90: Percentile | None
    p99: Percentile | None
    samples: int
    throughput: float | None


@dataclass(frozen=True)
class Figures:
    """One candidate. Everything is None or empty where `failure` says why it could not be measured.

    Units: seconds, bytes; `page_faults` are minor faults per call.
    """

    case: str
    name: str
    runtime: str
    failure: str = ""
    latency: Latency | None = None
    cold: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    page_faults: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, float] = field(default_factory=dict)
    norm_share: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """A hard limit on a figure, and what it was."""

    name: str
    limit: float
    value: float | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PairResult:
    """One candidate against the baseline of its case.

    `verdict` is about time alone; `warning` says what a reader must know beside it (outputs that differ),
    and `why` explains a verdict that is not what the interval alone would say. `gate` is "pass", "fail" or
    "inconclusive", and `clock` the same without the budgets; `waived` holds the reason where a failing gate
    was waived. `confirmation` is the ratio that fresh workers gave after a failing gate.
    `between` and `within` are what fresh processes disagree by, and the noise of one process's number, as
    standard deviations of the log-ratio.
    """

    case: str
    name: str
    baseline: str
    verdict: Verdict
    ratio: Ratio
    tolerance: float
    floor_s: float
    min_speedup: float | None
    outputs: OutputError | None
    gate: str
    clock: str = "inconclusive"
    budgets: tuple[Budget, ...] = ()
    warning: str = ""
    why: str = ""
    waived: str = ""
    confirmation: Ratio | None = None
    replicate_log_ratios: tuple[float, ...] = ()
    between: float = 0.0
    within: float = 0.0

    @property
    def headline(self) -> str:
        """The verdict as it is to be read: never "faster" without the warning."""
        return f"{self.verdict} (but {self.warning})" if self.warning else str(self.verdict)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": str(self.verdict), "headline": self.headline}


@dataclass(frozen=True)
class CaseResult:
    """One case: what was measured under which conditions, and how the run went."""

    name: str
    candidates: tuple[Figures, ...]
    comparisons: tuple[PairResult, ...]
    conditions: Mapping[str, Any]
    run: Mapping[str, Any]
    contention: tuple[Contention, ...] = ()
    contention_words: str = ""
    samples: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "conditions": dict(self.conditions),
            "run": dict(self.run),
            "contention": [c.to_dict() for c in self.contention],
            "contention_summary": self.contention_words,
            "replicates": list(self.samples),
        }


@dataclass(frozen=True)
class Comparison:
    """All cases of one run. `exit_code` is what the gates come to; `machine` is where it ran."""

    cases: tuple[CaseResult, ...]
    machine: Mapping[str, Any]
    exit_code: int = 0
    notes: tuple[str, ...] = ()

    @property
    def comparisons(self) -> list[PairResult]:
        """One entry per model other than its case's baseline."""
        return [c for case in self.cases for c in case.comparisons]

    @property
    def candidates(self) -> list[Figures]:
        return [f for case in self.cases for f in case.candidates]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "comparisons": [c.to_dict() for c in self.comparisons],
            "candidates": [f.to_dict() for f in self.candidates],
            "cases": [c.to_dict() for c in self.cases],
            "machine": dict(self.machine),
            "exit_code": self.exit_code,
            "notes": list(self.notes),
        }
