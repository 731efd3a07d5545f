"""A run as one HTML page that needs nothing else: verdicts first, then intervals, samples, contention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bntool.bench import rows
from bntool.report import timing_charts as charts
from bntool.report.study_style import STYLE

Document = Mapping[str, Any]
#: a sign beside each verdict, so that colour is not the only carrier
SIGNS = {"faster": "▲", "slower": "▼", "same": "=", "inconclusive": "?"}
EXTRA = """
.faster { color: var(--good); } .slower { color: var(--bad); } .same { color: var(--idle); }
figure.broad { max-width: none; margin: 22px 0 4px; overflow-x: auto; }
figure.broad svg { min-width: 640px; }
.tolerated { fill: var(--soft); opacity: .13; } .part { fill: var(--soft); opacity: .8; }
.tiny circle { opacity: .55; }
"""


def bench_page(document: Document, past: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page for what `Comparison.to_dict()` gives, and the lines of a history file, oldest first."""
    body = "".join(
        [
            header(document),
            summary(document),
            *(case_section(document, c) for c in document["cases"]),
            history(past),
        ]
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>bntool bench</title><style>{STYLE}{EXTRA}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def header(document: Document) -> str:
    machine = document["machine"]
    where = f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores, {machine.get('system', '')}"
    return f"<h1>Latency against a baseline</h1><p class='lead'>{escape(where)}</p>"


def summary(document: Document) -> str:
    items = "".join(verdict_item(document, p) for p in document["comparisons"])
    notes = "".join(f"<li>{escape(line)}</li>" for line in rows.remarks(document))
    box = f"<div class='box'><h3>What to know beside the numbers</h3><ul>{notes}</ul></div>" if notes else ""
    return f"<ul class='verdicts'>{items}</ul>{box}"


def verdict_item(document: Document, p: Mapping[str, Any]) -> str:
    badge = f"<span class='badge {p['verdict']}'>{SIGNS[p['verdict']]} {p['verdict']}</span>"
    ratio = f"{rows.number(p['ratio']['estimate'])} {rows.interval_of(p['ratio'])}"
    warning = f" <strong>{escape(p['warning'])}</strong>" if p["warning"] else ""
    gate = f"gate: {p['gate']}" + (" (waived)" if p["waived"] else "")
    return (
        f"<li>{badge}<span class='ask'>{escape(rows.label(document, p))}</span><span class='told'>"
        f"{escape(ratio)} of {escape(p['baseline'])}; {escape(gate)}.{warning}</span></li>"
    )


def case_section(document: Document, case: Mapping[str, Any]) -> str:
    only = {**document, "cases": [case]}
    for key in ("comparisons", "candidates"):
        only[key] = [e for e in document[key] if e["case"] == case["name"]]
    names = [f["name"] for f in only["candidates"]]
    parts = [
        f"<section><h2>{escape(case['name'])}</h2>",
        ratios(case, only["comparisons"]),
        charts.distributions(names, [times(case, k) for k in range(len(names))]),
        timeline(case, names),
        table(rows.COMPARISONS, rows.comparisons(only)),
        table(rows.CANDIDATES, rows.candidates(only)),
        table(rows.FACTS, rows.facts(only)),
        f"<p class='muted'>{escape(rows.how(only)[0])}</p></section>",
    ]
    return "".join(parts)


def ratios(case: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str:
    parts = (
        "runs of neighbouring rounds" if case["run"]["one_process"] else "single replicates (fresh processes)"
    )
    return charts.ratios([interval_of(p) for p in pairs], pairs[0]["tolerance"], parts)


def interval_of(p: Mapping[str, Any]) -> charts.Interval:
    ratio = {k: math.nan if p["ratio"][k] is None else p["ratio"][k] for k in ("estimate", "low", "high")}
    parts = tuple(math.exp(v) for v in p["replicate_log_ratios"])
    return charts.Interval(p["name"], ratio["estimate"], ratio["low"], ratio["high"], parts)


def times(case: Mapping[str, Any], index: int) -> list[float]:
    return [
        took
        for r in case["replicates"]
        for took, candidate in zip(r["took_s"], r["candidate"], strict=True)
        if candidate == index
    ]


def timeline(case: Mapping[str, Any], names: Sequence[str]) -> str:
    """Samples and contention over one axis: the replicates one after the other, without the pauses
    between.
    """
    dots: list[charts.Dot] = []
    ends: list[float] = []
    for replicate in case["replicates"]:
        start = ends[-1] if ends else 0.0
        columns = zip(replicate["at_s"], replicate["took_s"], replicate["candidate"], strict=True)
        dots += [charts.Dot(start + at, took, candidate) for at, took, candidate in columns]
        ends.append(dots[-1].at if dots else start)
    kinds = {
        "samples waiting for a CPU": "waited",
        "some task waiting (pressure)": "pressure",
        "steal": "steal",
    }
    shares = [[c[key] for c in case["contention"]] for key in kinds.values()]
    return charts.run_order(dots, ends, names) + charts.shares_over_time(list(kinds), ends, shares)


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td class='{'num' if k else ''}'>{escape(c)}</td>" for k, c in enumerate(row))
        + "</tr>"
        for row in lines
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def history(past: Sequence[Mapping[str, Any]]) -> str:
    """The ratios of earlier runs, by revision."""
    keys = sorted({(p["case"], p["name"]) for line in past for p in line["comparisons"]})
    found = [{(p["case"], p["name"]): p for p in line["comparisons"]} for line in past]
    series = [[then(line.get(key)) for line in found] for key in keys]
    drawn = charts.history(
        [line["revision"] or line["when"][:10] for line in past], [n for _, n in keys], series
    )
    return f"<section><h2>History</h2>{drawn}</section>" if drawn else ""


def then(p: Mapping[str, Any] | None) -> charts.Interval | None:
    if p is None or p["estimate"] is None:
        return None
    return charts.Interval(p["name"], p["estimate"], p["low"] or math.nan, p["high"] or math.nan)
