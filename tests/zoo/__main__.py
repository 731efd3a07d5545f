"""`make zoo`: folds every model of zoo.csv, one process each, and prints a table.

ARGS: names or globs of models to select.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from tests.zoo.check import Outcome, Row

FOLDER = Path(__file__).resolve().parent
PROCESSES = min(2, os.cpu_count() or 1)
# beyond this size two at once would not fit in memory: a float64 model, its folded copy and the work
HEAVY_PARAMS = 200_000_000
TIMEOUT_S = 1200


def rows(patterns: Sequence[str] = ()) -> list[Row]:
    lines = (FOLDER / "zoo.csv").read_text().splitlines()[1:]
    every = [Row.parse(line) for line in lines]
    return [row for row in every if not patterns or any(fnmatch(row.model, p) for p in patterns)]


def in_a_process(row: Row) -> Outcome:
    command = [sys.executable, "-m", "tests.zoo.check", row.line]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=FOLDER.parent.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Outcome(row.model, allowed=row.left, failure=f"took over {TIMEOUT_S} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Outcome(row.model, allowed=row.left, failure=last[:200])
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def outcomes(selected: Sequence[Row]) -> Iterator[Outcome]:
    light = [row for row in selected if row.params < HEAVY_PARAMS]
    with ThreadPoolExecutor(PROCESSES) as pool:
        yield from pool.map(in_a_process, light)
    yield from map(in_a_process, [row for row in selected if row.params >= HEAVY_PARAMS])


def line(outcome: Outcome) -> str:
    verdict = "ok" if outcome.passed else outcome.failure or reason(outcome)
    return (
        f"{outcome.model:32}{outcome.before:6}{outcome.after:6}{outcome.allowed:8}"
        f"{outcome.error:10.1e}{outcome.noise:10.1e}{outcome.fold_s:8.1f}  {verdict}"
    )


def reason(outcome: Outcome) -> str:
    wrong = [
        (not outcome.exact, "WRONG OUTPUTS"),
        (outcome.after > outcome.allowed, f"{outcome.after - outcome.allowed} FOLDABLE NORMS LEFT"),
        (not outcome.class_kept, "CLASS LOST"),
    ]
    return ", ".join(text for true, text in wrong if true)


def main() -> int:
    selected = rows(sys.argv[1:])
    print(
        f"{'model':32}{'norms':>6}{'left':>6}{'allowed':>8}{'error':>10}{'noise':>10}{'fold s':>8}",
        flush=True,
    )
    done = []
    for outcome in outcomes(selected):
        done.append(outcome)
        print(line(outcome), flush=True)
    before, after = sum(o.before for o in done), sum(o.after for o in done)
    passed = sum(o.passed for o in done)
    foldable = sum(row.foldable for row in selected)
    print(f"\n{passed} of {len(done)} models pass")
    print(f"{before - after} of {before} norm calls folded; {foldable} asked")
    return 0 if passed == len(selected) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
