"""A study as Markdown: the verdicts as a table, then each claim's effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bntool.report.study_html import signed

Document = Mapping[str, Any]


def study_markdown(found: Document) -> str:
    """The page for what `Study.to_dict()` gives."""
    parts = [
        f"# Study of {found['plan']['norms'][1]} norm: `{found['model']}` on `{found['data']}`",
        "",
        *(f"- {note}" for note in found["notes"]),
        "",
        "| | claim | verdict | measured |",
        "|---|---|---|---|",
        *(
            f"| {c['number']} | {c['question']} | **{c['verdict']}** | {plain(c['headline'])} |"
            for c in found["claims"]
        ),
        "",
        f"## Recommendation: {found['recommendation']['norm']}",
        "",
        *(f"- {s}" for s in found["recommendation"]["sentences"]),
        "",
    ]
    for claim in found["claims"]:
        parts += section(claim)
    return "\n".join([*parts, found["multiplicity"], ""])


def section(claim: Document) -> list[str]:
    rows = [
        f"| {'**' + m['name'] + '**' if m['primary'] else m['name']} | {signed(m['estimate'])} {m['unit']} | "
        f"{signed(m['low'])} to {signed(m['high'])} | {m['verdict']} |"
        for m in claim["measures"]
    ]
    head = ["| effect | estimate | interval | |", "|---|---|---|---|"] if rows else []
    return [
        f"## {claim['number']}. {claim['question']} {claim['verdict'].capitalize()}.",
        "",
        claim["headline"],
        "",
        *(f"- {c}" for c in claim["conditions"]),
        "",
        *head,
        *rows,
        "",
        f"How: {claim['protocol']}",
        "",
    ]


def plain(text: str) -> str:
    return text.replace("|", "\\|")
