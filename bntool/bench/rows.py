"""The tables of a run, made from its JSON document: the terminal, Markdown, CSV and HTML show the same
rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bntool.bench.units import show_change, show_count, show_s

Document = Mapping[str, Any]
COMPARISONS = ("model", "against", "verdict", "ratio", "interval", "change", "gate")
CANDIDATES = ("model", "runtime", "median", "p90", "p99", "throughput", "cold start", "peak memory", "faults")
FACTS = ("model", "params", "size", "MACs", "norms left", "ops", "output error")


def several(document: Document) -> bool:
    return len(document["cases"]) > 1


def label(document: Document, entry: Mapping[str, Any]) -> str:
    """A model's name, with its case where there are several."""
    return f"{entry['case']}: {entry['name']}" if several(document) else str(entry["name"])


def comparisons(document: Document) -> list[tuple[str, ...]]:
    return [
        (
            label(document, p),
            p["baseline"],
            p["verdict"] + (" *" if p["warning"] else ""),
            number(p["ratio"]["estimate"]),
            interval_of(p["ratio"]),
            show_change(p["ratio"]["estimate"]),
            p["gate"] + (" (waived)" if p["waived"] else ""),
        )
        for p in document["comparisons"]
    ]


def number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def interval_of(ratio: Mapping[str, Any]) -> str:
    if ratio["low"] in (None, 0.0) or ratio["high"] in (None, float("inf")):
        return "-"
    return f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"


def candidates(document: Document) -> list[tuple[str, ...]]:
    return [_candidate(document, f) for f in document["candidates"]]


def _candidate(document: Document, f: Mapping[str, Any]) -> tuple[str, ...]:
    name, latency = label(document, f), f["latency"] or {}
    if f["failure"]:
        return (name, f["runtime"], "failed", *["-"] * 6)
    rate = latency.get("throughput")
    cold = sum(f["cold"].values()) if f["cold"] else None
    return (
        name,
        f["runtime"],
        percentile(latency.get("median")),
        percentile(latency.get("p90")),
        percentile(latency.get("p99")),
        f"{show_count(rate)}/s" if rate else "-",
        show_s(cold),
        show_count(f["memory"].get("peak_rss_bytes"), "B"),
        "-" if f["page_faults"] is None else f"{f['page_faults']:g}",
    )


def percentile(p: Mapping[str, Any] | None) -> str:
    if not p:
        return "-"
    return f"{show_s(p['estimate_s'])} [{show_s(p['low_s'])}, {show_s(p['high_s'])}]"


def facts(document: Document) -> list[tuple[str, ...]]:
    errors = {(p["case"], p["name"]): p["outputs"] for p in document["comparisons"]}
    return [
        _facts(document, f, errors.get((f["case"], f["name"])))
        for f in document["candidates"]
        if not f["failure"]
    ]


def _facts(document: Document, f: Mapping[str, Any], outputs: Mapping[str, Any] | None) -> tuple[str, ...]:
    known = f["facts"]
    return (
        label(document, f),
        show_count(known.get("params")),
        show_count(known.get("size_bytes"), "B"),
        show_count(known.get("macs")),
        "-" if "norms" not in known else str(known["norms"]),
        "-" if "ops" not in known else str(known["ops"]),
        "-" if not outputs else error(outputs),
    )


def error(outputs: Mapping[str, Any]) -> str:
    relative = outputs["relative"]
    amount = "not comparable" if relative is None or relative == float("inf") else f"{relative:.1e}"
    return amount if outputs["equal"] else f"{amount} (differs)"


def remarks(document: Document) -> list[str]:
    """What a reader has to know beside the tables: warnings, reasons, broken budgets, waivers, contention."""
    found = []
    for p in document["comparisons"]:
        name = label(document, p)
        if p["warning"]:
            found.append(
                f"* {name}: {p['warning']}; being {p['verdict']} says nothing until that is explained"
            )
        if p["why"]:
            found.append(f"{name}: {p['why']}")
        found += [f"{name}: {budget(b)}" for b in p["budgets"] if not b["passed"]]
        if p["confirmation"] and p["gate"] == "fail":
            again = p["confirmation"]
            found.append(
                f"{name}: confirmed on fresh workers ({number(again['estimate'])} {interval_of(again)})"
            )
        if p["waived"]:
            found.append(f"{name}: waived, {p['waived']}")
    hidden = [
        label(document, f) for f in document["candidates"] if "before" in f["facts"].get("counted_on", "")
    ]
    found += [f"{name}: norms and ops are counted on the module before it was compiled" for name in hidden]
    for case in document["cases"]:
        if case["contention_summary"]:
            found.append(f"{case['name']}: {case['contention_summary']}")
    return [*found, *document["notes"]]


def budget(b: Mapping[str, Any]) -> str:
    value = "unknown" if b["value"] is None else f"{b['value']:g}"
    return f"{b['name']} is {value}, the budget {b['limit']:g}"


def how(document: Document) -> list[str]:
    """One line a case on how it was measured."""
    return [_how(case) for case in document["cases"]]


def _how(case: Mapping[str, Any]) -> str:
    run, conditions = case["run"], case["conditions"]
    threads = conditions["threads"] or "default"
    share = run["outside_samples"]
    return (
        f"{case['name']}: {run['replicates']} replicates of fresh workers, {sum(run['rounds'])} rounds in "
        f"{run['sampling_s']:.1f} s, {run['start_s']:.1f} s to start them; {run['stopped']}. "
        f"{run['confidence']:.0%} intervals, corrected for looks and comparisons. {threads} thread(s), "
        f"{conditions['device']}, {conditions['mode']}, allocator {run['allocator']}. Harness: "
        f"{show_s(run['clock_s_per_sample'])} in a sample, {share or 0.0:.0%} of the time between samples."
    )


def self_contained(document: Document) -> list[dict[str, Any]]:
    """One flat record per candidate, for CSV: raw numbers in seconds and bytes."""
    pairs = {(p["case"], p["name"]): p for p in document["comparisons"]}
    return [_record(f, pairs.get((f["case"], f["name"]))) for f in document["candidates"]]


def _record(f: Mapping[str, Any], pair: Mapping[str, Any] | None) -> dict[str, Any]:
    latency = f["latency"] or {}
    record: dict[str, Any] = {
        "case": f["case"],
        "model": f["name"],
        "runtime": f["runtime"],
        "failure": f["failure"],
    }
    for name in ("median", "p90", "p99"):
        part = latency.get(name) or {}
        record |= {
            f"{name}_s": part.get("estimate_s"),
            f"{name}_low_s": part.get("low_s"),
            f"{name}_high_s": part.get("high_s"),
        }
    record |= {k: f["facts"].get(k) for k in ("params", "size_bytes", "macs", "norms", "ops")}
    record |= {"peak_rss_bytes": f["memory"].get("peak_rss_bytes"), "page_faults": f["page_faults"]}
    ratio = pair["ratio"] if pair else {}
    record |= {f"ratio{s}": ratio.get(k) for s, k in (("", "estimate"), ("_low", "low"), ("_high", "high"))}
    record |= {k: pair[k] if pair else "" for k in ("baseline", "verdict", "gate", "warning", "why")}
    return record
