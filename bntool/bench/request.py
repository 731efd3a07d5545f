"""A command line's worth of options as one value: read once, checked once, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bntool.bench import stored, units
from bntool.bench.candidates import labelled, parse
from bntool.bench.cases import spread_out, with_file
from bntool.bench.compare import apart
from bntool.bench.gate import FAIL
from bntool.bench.judge import Waivers
from bntool.bench.plan import Budgets, Case, Effort, Gate
from bntool.bench.protocol import Candidate, Conditions, Side
from bntool.bench.result import Comparison
from bntool.bench.revision import revision_in, side_of
from bntool.bench.run import run_cases
from bntool.bench.selftest import add_sensitivity
from bntool.bench.suite import suite
from bntool.bench.waivers import Waiver
from bntool.errors import UsageError
from bntool.progress import Progress

#: what a self-test replicates: enough for a spread
SELF_TEST_REPLICATES = 6


@dataclass(frozen=True)
class Request:
    """Everything a run needs. Exactly one of the ways to choose cases is taken by `cases`."""

    candidates: tuple[Candidate, ...]
    gate: Gate
    conditions: Conditions
    effort: Effort
    runtimes: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    on_inconclusive: str = "pass"
    against: str = ""
    pythons: tuple[str, ...] = ()
    baseline: Path | None = None
    save_baseline: bool = False
    self_test: bool = False
    written: tuple[Case, ...] = ()
    waivers: Mapping[str, tuple[Waiver, ...]] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Request:
        """From the command's options by name and the project's settings. Raises: UsageError."""
        models = [with_file(parse(m), options["trust"], options["weights"]) for m in options["models"] or ()]
        found = None if models else suite(settings, only=options["case"] or (), trust=options["trust"])
        request = cls(
            candidates=tuple(models),
            gate=gate_of(options),
            conditions=conditions_of(options),
            effort=effort_of(options),
            runtimes=split(options["runtime"] or ()),
            batches=tuple(units.count(b, "--batch") for b in split([options["batch"]])),
            on_inconclusive=options["on_inconclusive"],
            against=options["against"],
            pythons=tuple(options["python"] or ()),
            baseline=options["baseline"],
            save_baseline=options["save_baseline"] is not None,
            self_test=options["self_test"],
            written=found.cases if found else (),
            waivers=found.waivers if found else {},
        )
        return request.checked()

    def checked(self) -> Request:
        ways = [self.against or self.pythons, self.baseline or self.save_baseline, self.self_test]
        if sum(map(bool, ways)) > 1:
            what = "--against/--python, --baseline/--save-baseline and --self-test exclude each other"
            raise UsageError(what, next="Choose one.")
        if (self.baseline or self.save_baseline) and self.gate.budgets.max_error is not None:
            what = "a stored ratio has no outputs to compare with"
            raise UsageError(what, where="--max-error", next="Name the other model instead.")
        if any(ways) and self.written:
            raise UsageError("that needs models on the command line", next="Name one.")
        if self.self_test and len(self.candidates) != 1:
            raise UsageError("--self-test times one model against itself", next="Name one model.")
        return self

    def cases(self, stack: ExitStack) -> list[Case]:
        """What will be timed. `stack` holds a revision's files for as long as it is needed."""
        if self.written:
            return list(self.written)
        if self.against or self.pythons:
            other = stack.enter_context(side_of(revision_in(self.against))) if self.against else Side()
            return apart(
                self.candidates, self.gate, self.conditions, self.runtimes, self.batches, other, self.pythons
            )
        if self.baseline or self.save_baseline:
            return [stored.case_of(labelled(self.candidates), self.gate, self.conditions)]
        chosen = self.candidates * 2 if self.self_test else self.candidates
        return spread_out(chosen, self.gate, self.conditions, self.runtimes, self.batches)

    def planned(self) -> list[dict[str, Any]]:
        """The cases in words, with nothing started but git."""
        with ExitStack() as stack:
            return [{"name": c.name, "candidates": [x.name for x in c.candidates]} for c in self.cases(stack)]

    def run(self, progress: Progress) -> tuple[Comparison, dict[str, Any] | None]:
        """The comparison, and the document to store where that was asked for."""
        if self.baseline:
            return self.by_stored(self.baseline, progress), None
        measured = self.measured(self.effort_for(), progress)
        if self.save_baseline:
            return replace(measured, exit_code=0), stored.document(measured)
        return (add_sensitivity(measured) if self.self_test else measured), None

    def measured(self, effort: Effort, progress: Progress) -> Comparison:
        with ExitStack() as stack:
            return run_cases(
                self.cases(stack),
                effort,
                on_inconclusive=self.on_inconclusive,
                waivers=Waivers(self.waivers),
                progress=progress,
            )

    def by_stored(self, path: Path, progress: Progress) -> Comparison:
        """Judged by stored ratios, a second time on fresh workers where the clock fails the gate."""
        known, effort = stored.read(path), self.effort_for()
        stored.check_names(known, [c.name for c in labelled(self.candidates)], str(path))

        def judged(effort: Effort) -> Comparison:
            return stored.against(self.measured(effort, progress), known, str(path), self.on_inconclusive)

        first = judged(effort)
        if not self.effort.confirm or all(p.clock != FAIL for p in first.comparisons):
            return first
        return stored.confirmed(first, judged(replace(effort, seed=effort.seed + 1)), self.on_inconclusive)

    def effort_for(self) -> Effort:
        """A self-test and a stored ratio need a spread, not a decision: a fixed number of replicates."""
        if self.self_test or self.baseline or self.save_baseline:
            count = self.effort.replicates or SELF_TEST_REPLICATES
            return replace(self.effort, replicates=count, confirm=False)
        return self.effort


def split(texts: Sequence[str]) -> tuple[str, ...]:
    """Values given once each or with commas; a comma inside parentheses belongs to its value."""
    found: list[str] = []
    for text in texts:
        depth, word = 0, ""
        for letter in text + ",":
            depth += (letter == "(") - (letter == ")")
            if letter == "," and depth == 0:
                found.append(word.strip())
                word = ""
            else:
                word += letter
    return tuple(filter(None, found))


def gate_of(options: Mapping[str, Any]) -> Gate:
    def counted(name: str) -> int | None:
        return units.count(options[name], "--" + name.replace("_", "-")) if options[name] else None

    limits = Budgets(
        options["max_norms"],
        options["max_ops"],
        counted("max_bytes"),
        counted("max_params"),
        counted("max_macs"),
        options["max_error"],
    )
    least = options["min_speedup"]
    return Gate(
        units.share(options["tolerance"], "--tolerance"),
        units.seconds(options["floor"], "--floor"),
        units.speedup(least, "--min-speedup") if least else None,
        limits,
    )


def conditions_of(options: Mapping[str, Any]) -> Conditions:
    same = ("dtype", "device", "channels_last", "mode", "threads", "seed", "flush_l2")
    return Conditions(specs=tuple(options["inputs"] or ()), **{name: options[name] for name in same})


def effort_of(options: Mapping[str, Any]) -> Effort:
    return Effort(
        budget_s=units.seconds(options["budget"], "--budget"),
        precision=units.share(options["precision"], "--precision") if options["precision"] else None,
        replicates=options["replicates"],
        confidence=units.share(options["confidence"], "--confidence"),
        confirm=not options["no_confirm"],
        allocator=options["allocator"],
        timeout_s=units.seconds(options["timeout"], "--timeout"),
        seed=options["seed"],
        profile=options["profile"],
    )
