"""From a ratio and figures to pass, fail or inconclusive, and from all of them to one exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bntool.bench.equality import OutputError
from bntool.bench.plan import Budgets, Gate
from bntool.bench.result import Budget, PairResult
from bntool.bench.statistics import Ratio
from bntool.bench.verdict import Verdict

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
#: where a budget's value is found among a candidate's facts
FACT_OF = {
    "max_norms": "norms",
    "max_ops": "ops",
    "max_bytes": "size_bytes",
    "max_params": "params",
    "max_macs": "macs",
}
EXIT_OK, EXIT_FAIL, EXIT_RUN, EXIT_INCONCLUSIVE, EXIT_DIFFERENT = 0, 1, 4, 5, 6
ON_INCONCLUSIVE = {"pass": EXIT_OK, "fail": EXIT_FAIL, "exit5": EXIT_INCONCLUSIVE}


def time_gate(verdict: Verdict, ratio: Ratio, gate: Gate) -> str:
    """What the clock says about the gate.

    With a minimum speedup s: pass when the whole interval is below 1 and the estimate reaches 1/s, fail
    when the whole interval is above 1/s, else inconclusive. Without: fail when slower, pass when same or
    faster.
    """
    if gate.min_speedup is None:
        if verdict is Verdict.SLOWER:
            return FAIL
        return INCONCLUSIVE if verdict is Verdict.INCONCLUSIVE else PASS
    target = 1.0 / gate.min_speedup
    if ratio.high < 1.0 and ratio.estimate <= target:
        return PASS
    return FAIL if ratio.low > target else INCONCLUSIVE


def check_budgets(
    budgets: Budgets, facts: Mapping[str, Any], outputs: OutputError | None
) -> tuple[Budget, ...]:
    """Every budget that was set. A figure that is not known fails its budget: a gate is never off by
    accident.
    """
    checked = [
        _budget(name, getattr(budgets, name), facts.get(fact))
        for name, fact in FACT_OF.items()
        if getattr(budgets, name) is not None
    ]
    if budgets.max_error is not None:
        checked.append(_budget("max_error", budgets.max_error, outputs.relative if outputs else None))
    return tuple(checked)


def _budget(name: str, limit: float, value: float | None) -> Budget:
    return Budget(name, limit, value, value is not None and value <= limit)


def overall(clock: str, budgets: Iterable[Budget]) -> str:
    return FAIL if any(not b.passed for b in budgets) else clock


def exit_code(comparisons: Iterable[PairResult], on_inconclusive: str, *, unmeasured: bool = False) -> int:
    """6 where outputs broke their budget, 1 where another gate failed, 4 where something could not be
    measured, then what inconclusive is to mean, else 0. Waived failures count as passed.
    """
    standing = [c for c in comparisons if not c.waived]
    failed = [c for c in standing if c.gate == FAIL]
    if any(b.name == "max_error" and not b.passed for c in failed if c.outputs for b in c.budgets):
        return EXIT_DIFFERENT
    if failed:
        return EXIT_FAIL
    if unmeasured:
        return EXIT_RUN
    undecided = any(c.gate == INCONCLUSIVE for c in standing)
    return ON_INCONCLUSIVE[on_inconclusive] if undecided else EXIT_OK
