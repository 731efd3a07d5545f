"""What is to be compared, and how hard: a case, its gates, and the effort of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.errors import UsageError


@dataclass(frozen=True)
class Budgets:
    """Hard limits on figures that need no clock, for every candidate but the baseline. None: no limit."""

    max_norms: int | None = None
    max_ops: int | None = None
    max_bytes: int | None = None
    max_params: int | None = None
    max_macs: int | None = None
    max_error: float | None = None
    """Largest relative error of the outputs against the baseline's (of the largest baseline value)."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Budgets:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise UsageError(f"unknown budget {unknown[0]!r}", next=f"Known: {', '.join(sorted(known))}.")
        for name, limit in raw.items():
            if type(limit) not in (int, float) or not 0 <= limit < math.inf:
                raise UsageError(f"the budget {name} is {limit!r}", next="Write a number, 0 or more.")
        return cls(**raw)


@dataclass(frozen=True)
class Gate:
    """When a comparison fails. `tolerance` is relative, `floor_s` absolute; `min_speedup` asks for a gain."""

    tolerance: float = 0.05
    floor_s: float = 0.0
    min_speedup: float | None = None
    budgets: Budgets = field(default_factory=Budgets)

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < 10.0:
            raise UsageError(f"the tolerance {self.tolerance:g} makes no sense", next="Write 5% or 0.05.")
        if not 0.0 <= self.floor_s < math.inf:
            raise UsageError("the floor makes no sense", where="--floor", next="Write 0.1ms.")
        if self.min_speedup is not None and not 1.0 <= self.min_speedup < math.inf:
            what = f"a speedup of {self.min_speedup:g} is none"
            raise UsageError(
                what, where="--min-speedup", next="Write 1.2 for 20 %; --tolerance allows a slowdown."
            )


@dataclass(frozen=True)
class Effort:
    """How long to measure. `budget_s` is sampling time per case (starting the workers comes on top).

    `precision`: keep on until every interval is at most this far from its estimate (0.02 is +-2 %), or the
    budget is spent. Without it the run stops as soon as every comparison is decided. `replicates` fixes their
    number. `confirm` repeats a failing gate on fresh workers.
    """

    budget_s: float = 10.0
    precision: float | None = None
    replicates: int | None = None
    confidence: float = 0.95
    confirm: bool = True
    allocator: str = "fixed"
    timeout_s: float = 600.0
    seed: int = 0
    profile: bool = False

    def __post_init__(self) -> None:
        for flag, value in (("budget", self.budget_s), ("timeout", self.timeout_s)):
            if not 0.0 < value < math.inf:
                raise UsageError(f"the {flag} must be positive", where=f"--{flag}", next="Write 10s.")
        if self.precision is not None and not 0.0 < self.precision < math.inf:
            raise UsageError("the precision must be positive", where="--precision", next="Write 1%.")
        if self.replicates is not None and self.replicates < 2:
            what = "one replicate says nothing of what another process would draw"
            raise UsageError(what, where="--replicates", next="Use at least 2.")
        if not 0.5 <= self.confidence < 1.0:
            raise UsageError("the confidence makes no sense", where="--confidence", next="Write 95%.")
        if self.allocator not in ("fixed", "default"):
            raise UsageError(f"unknown allocator {self.allocator!r}", next="Use fixed or default.")

    @property
    def alpha(self) -> float:
        return 1.0 - self.confidence


@dataclass(frozen=True)
class Case:
    """Candidates that are timed against the first one, under the same conditions.

    `sides` maps a candidate's number to where its code lives; those not named share the default side.
    """

    name: str
    candidates: tuple[Candidate, ...]
    conditions: Conditions = field(default_factory=Conditions)
    gate: Gate = field(default_factory=Gate)
    sides: Mapping[int, Side] = field(default_factory=dict)

    def side(self, index: int) -> Side:
        return self.sides.get(index, Side())

    @property
    def apart(self) -> bool:
        """Whether the candidates need several processes."""
        return len({self.side(i) for i in range(len(self.candidates))}) > 1
