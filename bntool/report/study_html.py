"""A study as one HTML page that needs nothing else: the seven verdicts first, then each claim's evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bntool.report.charts import draw, number
from bntool.report.study_style import STYLE

Document = Mapping[str, Any]
#: a sign beside each verdict, so that colour is not the only carrier
SIGNS = {"shown": "✓", "not shown": "○", "reversed": "↺", "inconclusive": "?"}
#: claims that are drawbacks: small batches, cost, better alternatives
LIMITS = (5, 6, 7)
MEANINGS = {
    "shown": "the effect is there, in the direction claimed, and large enough to matter",
    "not shown": "an effect large enough to matter is ruled out",
    "reversed": "the opposite was measured",
    "inconclusive": "the measurement cannot tell",
}


def study_page(found: Document) -> str:
    """The page for what `Study.to_dict()` gives."""
    title = f"Batch norm study: {found['model']}"
    body = "".join(
        [header(found), summary(found), recommendation(found), *map(claim, found["claims"]), method(found)]
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def header(found: Document) -> str:
    plan = found["plan"]
    norm = escape(plan["norms"][1])
    notes = "".join(f"<li>{escape(n)}</li>" for n in found["notes"])
    listed = f"<details><summary>How the data were fitted to the model</summary><ul>{notes}</ul></details>"
    return (
        f"<h1>What does {norm} norm do for this model?</h1>"
        f"<p class='lead'><code>{escape(found['model'])}</code> on <code>{escape(found['data'])}</code>: "
        f"{found['trials']} networks trained for {plan['steps']} steps or more, {plan['seeds']} seeds a "
        f"comparison. A score is the {escape(found['score'])}. The same study again: "
        f"<code class='whole'>--tier {plan['tier']} --seed {plan['seed']}</code>.</p>"
        f"{listed if notes else ''}"
    )


def badge(claim: Document) -> str:
    verdict = claim["verdict"]
    limit = " limit" if claim["number"] in LIMITS else ""
    return f"<span class='badge {verdict.replace(' ', '-')}{limit}'>{SIGNS[verdict]} {escape(verdict)}</span>"


def summary(found: Document) -> str:
    """Benefits and limits apart: "shown" is good news in one list and bad news in the other."""
    gains = [c for c in found["claims"] if c["number"] not in LIMITS]
    limits = [c for c in found["claims"] if c["number"] in LIMITS]
    seen = dict.fromkeys(c["verdict"] for c in found["claims"])
    meaning = "; ".join(f"<b>{escape(v)}</b>: {escape(MEANINGS[v])}" for v in seen)
    told = listed("What it is said to do for you", gains) + listed("What it is said to cost you", limits)
    return f"{told}<p class='muted'>{meaning}.</p>"


def listed(title: str, claims: Sequence[Document]) -> str:
    if not claims:
        return ""
    rows = "".join(
        f"<li>{badge(c)}<a class='ask' href='#claim-{c['number']}'>"
        f"{c['number']}. {escape(c['question'])}</a>"
        f"<span class='told'>{escape(c['headline'])}{caveats(c)}</span></li>"
        for c in claims
    )
    return f"<h3>{escape(title)}</h3><ul class='verdicts'>{rows}</ul>"


def caveats(claim: Document) -> str:
    """What the finding is really due to, where that is known."""
    return "".join(f" <b>{escape(c)}</b>" for c in claim["conditions"] if c.startswith("So "))


def recommendation(found: Document) -> str:
    told = found["recommendation"]
    sentences = "".join(f"<li>{escape(s)}</li>" for s in told["sentences"])
    rows = [(s["name"], s["norm"], s["n_eff"], s["why"]) for s in told["sites"]]
    where = table({"title": "", "columns": ("site", "norm", "n_eff", "why"), "rows": rows}) if rows else ""
    inside = f"<details><summary>Site by site ({len(rows)})</summary>{where}</details>" if rows else ""
    plain = {"none": "no norm", "undecided": "undecided"}
    advice = plain.get(told["norm"], f"{told['norm']} norm")
    return f"<div class='box'><h2>Recommendation: {escape(advice)}</h2><ul>{sentences}</ul>{inside}</div>"


def claim(found: Document) -> str:
    charts = "".join(draw(c) for c in found["charts"])
    conditions = "".join(f"<li>{escape(c)}</li>" for c in found["conditions"])
    return (
        f"<section id='claim-{found['number']}'>{badge(found)}"
        f"<h2>{found['number']}. {escape(found['question'])}</h2><p>{escape(found['headline'])}</p>"
        f"{f'<ul>{conditions}</ul>' if conditions else ''}<div class='charts'>{charts}</div>"
        f"{measures(found['measures'])}{''.join(map(table, found['tables']))}"
        f"<h3>How it was measured</h3><p class='muted'>{escape(found['protocol'])}</p></section>"
    )


def measures(rows: Sequence[Document]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr class='{'primary' if m['primary'] else ''}'><td>{escape(m['name'])}</td>"
        f"<td class='num'>{signed(m['estimate'])} {escape(m['unit'])}</td>"
        f"<td class='num'>{signed(m['low'])} to {signed(m['high'])} ({100 * m['level']:.1f} %)</td>"
        f"<td class='num {m['verdict'].replace(' ', '-')}'>{escape(m['verdict'])}</td></tr>"
        for m in rows
    )
    head = "<tr><th>effect (bold: decides)</th><th>estimate</th><th>interval</th><th></th></tr>"
    return f"<h3>Effects</h3><div class='wide'><table>{head}{lines}</table></div>"


def signed(value: float | None) -> str:
    """With its sign; "open" where there is no number (an interval without an end, nothing measured)."""
    return f"{value:+.3f}" if value is not None and abs(value) < 1e6 else "open"


def table(found: Document) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in found["columns"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(v))}</td>" for v in row) + "</tr>" for row in found["rows"]
    )
    title = f"<h3>{escape(found['title'])}</h3>" if found["title"] else ""
    return f"{title}<div class='wide'><table><tr>{head}</tr>{rows}</table></div>"


def cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def method(found: Document) -> str:
    plan = found["plan"]
    rows = [(name, ", ".join(map(str, v)) if isinstance(v, list | tuple) else v) for name, v in plan.items()]
    shown = table({"title": "", "columns": ("", ""), "rows": rows})
    return (
        f"<section><h2>How to read this</h2><p>{escape(found['multiplicity'])}</p>"
        "<p>Arms share seeds, initial weights where they have the same layers, and the order of data. "
        "The interval is Student's over paired seeds: it says how a result would vary with other seeds on "
        "these data, not on other data. An effect counts as shown only if its interval is on one side of "
        "zero and its size is at least what is said to count.</p>"
        "<p>A decade is a factor of ten, a halving a factor of two; n_eff is how many values share one "
        "statistic; an octave of rates is a factor of two.</p>"
        f"<details><summary>The plan, complete</summary>{shown}</details></section>"
    )
