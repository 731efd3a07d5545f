"""`make bench-selfcheck`: what bench's rules do on this machine, beside naive ones on the same
data.

Collects replicates in fresh worker processes, each holding eight copies of one network (four separate A/A
pairs) and two networks that do 4 % and 10 % more work. Then the very rules that `bntool bench` uses are run
over them: looks at 4, 6 and 9 replicates, the verdict, tolerance 5 %.

Restartable: replicates are appended to --data as they are taken, and a second run takes only what is
missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bntool.bench.conduct import replicate
from bntool.bench.contention import in_words
from bntool.bench.examine import Spawn
from bntool.bench.plan import Case, Effort
from bntool.bench.protocol import Candidate, Conditions
from bntool.bench.run import spawner
from bntool.bench.sequential import SHARED, look_at
from bntool.bench.statistics import Array, center, log_ratios
from bntool.bench.verdict import Verdict, decide

TOLERANCE, ALPHA = 0.05, 0.05
#: calls of one convolution: the base, and what 4 % and 10 % more of them are
WORK = {"base": 50, "4 %": 52, "10 %": 55}
COPIES = 8
REF = f"{Path(__file__).with_name('nets.py')}:net(times={{}})"
PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7)]
PLANTED = {"4 %": COPIES, "10 %": COPIES + 1}

AUTHOR = ["-c", "user.name=selfcheck", "-c", "user.email=selfcheck@example.com"]

Rounds = dict[int, Array]
Pair = tuple[int, int]


def case() -> Case:
    refs = [WORK["base"]] * COPIES + [WORK["4 %"], WORK["10 %"]]
    chosen = tuple(Candidate(f"{k}", REF.format(times)) for k, times in enumerate(refs))
    return Case("selfcheck", chosen, Conditions(specs=("1x8x16x16",)))


def collect(path: Path, wanted: int, effort: Effort) -> None:
    """Append replicates to `path` until there are `wanted`."""
    done = len(path.read_text().splitlines()) if path.exists() else 0
    spawn: Spawn = spawner(effort)
    chosen, started = case(), time.monotonic()
    for number in range(done, wanted):
        taken = replicate(
            chosen, effort, spawn, list(range(len(chosen.candidates))), SHARED, np.random.default_rng(number)
        )
        record = {
            "times": [taken.times(k).tolist() for k in range(len(chosen.candidates))],
            "contention": in_words([taken.contention]),
            "sampling_s": taken.sampling_s,
            "start_s": taken.start_s,
        }
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if number % 10 == 9:
            each = (time.monotonic() - started) / (number + 1 - done)
            print(f"{number + 1} of {wanted} replicates, {each:.1f} s each", file=sys.stderr)


def pool_of(lines: Sequence[dict[str, Any]]) -> list[Rounds]:
    return [{k: np.array(t) for k, t in enumerate(line["times"])} for line in lines]


@dataclass(frozen=True)
class Outcome:
    """What one comparison came to: verdict, whether the interval excludes 1, replicates used, estimate."""

    verdict: Verdict
    excludes: bool
    used: int
    estimate: float


def compare(pool: Sequence[Rounds], pair: Pair, most: int = SHARED.most) -> Outcome:
    """One comparison as bench makes it, on replicates from the front of `pool`, with at most `most` of
    them.
    """
    centers = [center(log_ratios(r[pair[1]], r[pair[0]])) for r in pool[:most]]
    for index, count in enumerate(n for n in SHARED.replicates if n <= most):
        ratio = look_at(centers[:count], SHARED, index, ALPHA).ratio
        verdict = decide(ratio, TOLERANCE)
        if verdict is not Verdict.INCONCLUSIVE:
            break
    return Outcome(verdict, not ratio.low <= 1.0 <= ratio.high, count, ratio.estimate)


def disjoint(pool: Sequence[Rounds], pair: Pair) -> list[Outcome]:
    """As many comparisons as the replicates carry, none sharing a replicate with another one of this pair."""
    found, at = [], 0
    while at + SHARED.most <= len(pool):
        found.append(compare(pool[at:], pair))
        at += found[-1].used
    return found


def naive_medians(pool: Sequence[Rounds], pair: Pair) -> list[float]:
    """Run one script, then the other: ratios of medians of two processes, one after the other."""
    return [
        float(np.median(b[pair[1]]) / np.median(a[pair[0]]))
        for a, b in zip(pool[::2], pool[1::2], strict=False)
    ]


def naive_blocks(pool: Sequence[Rounds], pair: Pair) -> list[float]:
    """One after the other in one process: the first half of one's samples against the second half of
    the other's.
    """
    halves = [len(r[pair[0]]) // 2 for r in pool]  # a replicate that was slow has fewer rounds
    pairs = zip(pool, halves, strict=True)
    return [float(np.median(r[pair[1]][half:]) / np.median(r[pair[0]][:half])) for r, half in pairs]


def rank_tests(pool: Sequence[Rounds], pair: Pair) -> list[float]:
    """Two-sided p-values of a rank test on one process's interleaved samples."""
    return [float(stats.mannwhitneyu(r[pair[1]], r[pair[0]]).pvalue) for r in pool]


def say(what: str, hits: Sequence[bool], note: str = "") -> None:
    """A rate with its Clopper-Pearson interval at 95 %."""
    found, n = sum(map(bool, hits)), len(hits)
    exact = stats.binomtest(found, n).proportion_ci(0.95)
    rate = f"{found / n:6.1%}  ({found} of {n}; {exact.low:.1%} to {exact.high:.1%})"
    print(f"  {what:<44} {rate}  {note}".rstrip())


def report(pool: list[Rounds], lines: Sequence[dict[str, Any]]) -> bool:
    """Print everything. Returns: whether there were 200 comparisons and false alarms are at most 1 %."""
    every = [o for pair in PAIRS for o in disjoint(pool, pair)]
    alarms = [o.verdict is Verdict.SLOWER for o in every]
    rounds = statistics.median(len(r[0]) for r in pool)
    busy = sum(bool(line["contention"]) for line in lines)
    print(f"{len(pool)} replicates (fresh processes), {rounds:g} rounds each, 1 thread, allocator fixed")
    print(f"median call {1e3 * typical_s(pool):.2f} ms; {busy} of {len(lines)} replicates saw contention")
    print("\nA/A, tolerance 5 %: false alarms")
    say("bench: slower, before any confirmation", alarms)
    say("bench: interval excludes 1 (5 % allowed)", [o.excludes for o in every])
    say("bench: verdict is same", [o.verdict is Verdict.SAME for o in every])
    say("medians of two runs, ratio above 1.05", [m > 1.05 for p in PAIRS for m in naive_medians(pool, p)])
    say("blocks in one run, ratio above 1.05", [m > 1.05 for p in PAIRS for m in naive_blocks(pool, p)])
    say("rank test on one run, p < 0.05", [q < 0.05 for p in PAIRS for q in rank_tests(pool, p)])
    for name, index in PLANTED.items():
        power(pool, lines, name, (0, index))
    return len(every) >= 200 and float(np.mean(alarms)) <= 0.01


def typical_s(pool: Sequence[Rounds]) -> float:
    """The base network's median call, in seconds."""
    return statistics.median(float(np.median(r[0])) for r in pool)


def power(
    pool: list[Rounds], lines: Sequence[dict[str, Any]], name: str, pair: Pair, draws: int = 200
) -> None:
    """How often a planted difference is found, by budget: random draws of replicates from all there are."""
    rng = np.random.default_rng(0)
    true = math.expm1(statistics.median(center(log_ratios(r[pair[1]], r[pair[0]])) for r in pool))
    print(f"\nplanted {name} (over everything: {true:+.1%}): found, in {draws} random draws of replicates")
    sampling_s = typical_s(pool) * 2 * statistics.median(len(r[0]) for r in pool)
    # a process of this run opens ten networks, one of bench's own two
    start_s = statistics.median(line["start_s"] for line in lines) / (len(pool[0]) / 2)
    for most in SHARED.replicates:
        picks = [rng.permutation(len(pool))[:most] for _ in range(draws)]
        taken = [compare([pool[i] for i in pick], pair, most) for pick in picks]
        budget = f"{most * sampling_s:.1f} s of samples"
        note = f"{budget}, {most * (start_s + sampling_s):.0f} s with starting the workers"
        say(
            f"bench, {most} replicates: interval above 1",
            [o.excludes and o.estimate > 1 for o in taken],
            note,
        )
        say(f"bench, {most} replicates: slower than 5 %", [o.verdict is Verdict.SLOWER for o in taken])
    say("medians of two runs, ratio above 1.05", [m > 1.05 for m in naive_medians(pool, pair)])
    say("rank test on one run, p < 0.002", [q < 0.002 for q in rank_tests(pool, pair)])


def documentation(runs: int) -> bool:
    """Run the real command against the commit before one that changed only words. Returns: whether all
    passed.
    """
    source = Path(__file__).with_name("nets.py").read_text()
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for text in (source, source.replace('"""Tiny networks', '"""Very tiny networks')):
            Path(folder, "nets.py").write_text(text)
            for arguments in (["init", "-q"], ["add", "-A"], [*AUTHOR, "commit", "-qm", "words"]):
                subprocess.run(["git", *arguments], cwd=folder, check=True)
        for number in range(runs):
            asked = [
                "bench",
                "nets.py:net(times=50)",
                "--against",
                "git:HEAD~1",
                "--json",
                "--seed",
                str(number),
            ]
            command = [sys.executable, "-m", "bntool", *asked, "--input", "1x8x16x16"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            codes.append(done.returncode)
            verdict = json.loads(done.stdout)["comparisons"][0]["verdict"] if done.stdout else done.stderr
            print(f"change of documentation, run {number + 1}: {verdict}, exit code {codes[-1]}", flush=True)
    print(f"{codes.count(0)} of {len(codes)} passed")
    return codes.count(0) == len(codes)


def main() -> int:
    asked = argparse.ArgumentParser(prog="make bench-selfcheck", description=__doc__)
    asked.add_argument(
        "--replicates", type=int, default=270, help="fresh processes; 270 give over 200 comparisons"
    )
    asked.add_argument(
        "--data", type=Path, default=Path("bench-selfcheck.jsonl"), help="appended to, and read again"
    )
    asked.add_argument("--budget", type=float, default=4.5, help="sampling seconds of nine replicates")
    asked.add_argument("--report-only", action="store_true", help="take nothing more")
    asked.add_argument(
        "--documentation", type=int, default=0, help="instead: so many runs against a changed word"
    )
    options = asked.parse_args()
    if options.documentation:
        return 0 if documentation(options.documentation) else 1
    if not options.report_only:
        collect(options.data, options.replicates, Effort(budget_s=options.budget))
    lines = [json.loads(line) for line in options.data.read_text().splitlines()]
    good = report(pool_of(lines), lines)
    print("\n" + ("at most 1 % false alarms over at least 200 comparisons: yes" if good else "NOT reached"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
