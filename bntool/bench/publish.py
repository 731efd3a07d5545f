"""A run's JSON document as Markdown, CSV, JUnit, and as GitHub's annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bntool.bench import rows
from bntool.report.junit import TestCase, junit_xml
from bntool.report.tables import csv_text, markdown_table

OUTCOMES = {"pass": "passed", "fail": "failed", "inconclusive": "skipped"}


def markdown(document: Mapping[str, Any]) -> str:
    parts = [
        "### bntool bench",
        markdown_table(rows.COMPARISONS, rows.comparisons(document)),
        *[f"- {line.removeprefix('* ')}" for line in rows.remarks(document)],
        "<details><summary>Latency, memory and figures without a clock</summary>\n",
        markdown_table(rows.CANDIDATES, rows.candidates(document)),
        markdown_table(rows.FACTS, rows.facts(document)),
        *rows.how(document),
        "</details>\n",
    ]
    return "\n\n".join(parts)


def csv(document: Mapping[str, Any]) -> str:
    return csv_text(rows.self_contained(document))


def junit(document: Mapping[str, Any]) -> str:
    """One test per comparison: inconclusive is skipped, a candidate that could not run is an error."""
    failures = {(f["case"], f["name"]): f["failure"] for f in document["candidates"]}
    tests = [_test(p, failures.get((p["case"], p["name"]), "")) for p in document["comparisons"]]
    return junit_xml("bntool bench", tests)


def _test(p: Mapping[str, Any], failure: str) -> TestCase:
    ratio = f"{rows.number(p['ratio']['estimate'])} {rows.interval_of(p['ratio'])} of {p['baseline']}"
    outcome = "error" if failure else "passed" if p["waived"] else OUTCOMES[p["gate"]]
    return TestCase(p["case"], p["name"], outcome, failure or headline(p), f"{ratio}\n{p['why']}".strip())


def headline(p: Mapping[str, Any]) -> str:
    broken = [rows.budget(b) for b in p["budgets"] if not b["passed"]]
    return "; ".join([p["headline"], *broken])


def workflow_commands(document: Mapping[str, Any]) -> list[str]:
    """GitHub workflow commands: an error for a failing gate, a warning for what is doubtful."""
    lines = []
    for p in document["comparisons"]:
        ratio = f"{rows.number(p['ratio']['estimate'])} {rows.interval_of(p['ratio'])}"
        text = f"{p['name']}: {headline(p)} (ratio {ratio})"
        level = "error" if p["gate"] == "fail" and not p["waived"] else "warning"
        if p["gate"] != "pass" or p["warning"]:
            lines.append(f"::{level} title=bntool bench::{escape(text)}")
    return lines


def escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
