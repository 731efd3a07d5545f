"""Where a bench's results go: the terminal, files, GitHub."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntool.cli import screen
from bntool.errors import BntoolError, RunError, UsageError

if TYPE_CHECKING:
    from bntool.bench.result import Comparison


@dataclass(frozen=True)
class Files:
    """The files a run was asked to write."""

    csv: Path | None
    markdown: Path | None
    junit: Path | None
    html: Path | None
    history: Path | None
    baseline: Path | None

    def check(self, *, force: bool) -> None:
        """Before minutes of timing. Raises: UsageError for a target that cannot be written."""
        from bntool.bench import history
        from bntool.sources.writing import check_target

        for path in filter(None, (self.csv, self.markdown, self.junit, self.html, self.baseline)):
            check_target(path, force=force)
        if self.history:
            check_target(self.history, force=True)
            history.read(self.history)
        for path in filter(None, vars(self).values()):
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise UsageError("it cannot be written", where=str(path), next="Choose another place.")


def deliver(
    comparison: Comparison,
    stored: Mapping[str, Any] | None,
    files: Files,
    *,
    as_json: bool,
    force: bool,
    profile: bool,
) -> int:
    """Print, write, annotate. Returns: the exit code."""
    document = screen.plain(comparison.to_dict())
    problem = write_files(document, stored, files, force=force)
    if as_json:
        screen.emit_json(document)
    else:
        show(document, profile=profile)
    github(document)
    if problem:
        raise problem
    return comparison.exit_code


def show(document: Mapping[str, Any], *, profile: bool) -> None:
    from bntool.bench import rows

    screen.table(rows.COMPARISONS, rows.comparisons(document), right=("ratio", "change"))
    screen.table(rows.CANDIDATES, rows.candidates(document), right=rows.CANDIDATES[2:])
    screen.table(rows.FACTS, rows.facts(document), right=rows.FACTS[1:])
    if profile:
        screen.table(("model", "operator", "time", "share"), profiled(document), right=("time", "share"))
    for line in rows.remarks(document):
        screen.say(line)
    for line in rows.how(document):
        screen.note(line)


def profiled(document: Mapping[str, Any], most: int = 8) -> list[tuple[str, ...]]:
    """The operators that take most of the time, and the share of norms."""
    from bntool.bench.rows import label
    from bntool.bench.units import show_s

    lines: list[tuple[str, ...]] = []
    for f in document["candidates"]:
        total = sum(f["profile"].values()) or 1.0
        top = sorted(f["profile"].items(), key=lambda item: -item[1])[:most]
        lines += [(label(document, f), op, show_s(t), f"{t / total:.0%}") for op, t in top]
        if f["norm_share"] is not None:
            lines.append((label(document, f), "all norms", "", f"{f['norm_share']:.0%}"))
    return lines


def write_files(
    document: Mapping[str, Any], stored: Mapping[str, Any] | None, files: Files, *, force: bool
) -> BntoolError | None:
    """Write all that can be written: minutes of timing went into it. Returns: the first problem."""
    from bntool.bench import history, publish
    from bntool.bench.page import bench_page

    line = history.line_of(dict(document)) if files.history else None
    past = [*history.read(files.history), line] if files.history and line else []
    writers: list[tuple[Path | None, Callable[[Path], None]]] = [
        (files.csv, lambda path: write(path, publish.csv(document), force=force)),
        (files.markdown, lambda path: write(path, publish.markdown(document), force=force)),
        (files.junit, lambda path: write(path, publish.junit(document), force=force)),
        (files.html, lambda path: write(path, bench_page(document, past), force=force)),
        (files.baseline, lambda path: write(path, baseline_text(stored), force=force)),
        (files.history, lambda path: history.append(path, line or {})),
    ]
    problems: list[BntoolError] = []
    for path, put in writers:
        try:
            if path:
                put(path)
                screen.note(f"wrote {path}")
        except (OSError, BntoolError) as problem:
            problems.append(unwritten(path, problem))
    return problems[0] if problems else None


def unwritten(path: Path | None, problem: OSError | BntoolError) -> BntoolError:
    if isinstance(problem, BntoolError):
        return problem
    return RunError(f"cannot be written: {problem.strerror}", where=str(path), next="The rest was written.")


def baseline_text(stored: Mapping[str, Any] | None) -> str:
    return json.dumps(screen.plain(stored or {}), indent=2) + "\n"


def write(path: Path, text: str, *, force: bool) -> None:
    from bntool.sources.writing import beside

    with beside(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def github(document: Mapping[str, Any]) -> None:
    """The job's summary and annotations, where a GitHub job is running."""
    from bntool.bench import publish

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(publish.markdown(document) + "\n")
        except OSError as problem:
            screen.warn(f"the job's summary cannot be written: {problem.strerror}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in publish.workflow_commands(document):
            # stderr: the runner reads both, and stdout is data
            print(line, file=sys.stderr)
