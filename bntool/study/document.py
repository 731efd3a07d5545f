"""A study as plain JSON values; every rendering (table, HTML, Markdown) is made from this."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bntool.study.claims.base import Finding

if TYPE_CHECKING:
    from bntool.study.study import Study


def document(study: Study) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "study",
        "model": study.model,
        "data": study.data,
        "score": study.score,
        "notes": list(study.notes),
        "plan": study.plan.to_dict(),
        "multiplicity": multiplicity(study),
        "claims": [finding_dict(f) for f in study.findings],
        "recommendation": study.recommendation.to_dict(),
        "trials": study.trials,
    }


def multiplicity(study: Study) -> str:
    count = len(study.plan.claims)
    return (
        f"Verdicts rest on one measure a claim, each with a {study.plan.family_level:.1%} interval, so "
        f"that all {count} "
        f"together are wrong at most {1 - study.plan.level:.0%} of the time (Bonferroni). All other "
        "intervals are "
        f"{study.plan.level:.0%} each, uncorrected: they explain, they do not decide."
    )


def finding_dict(finding: Finding) -> dict[str, Any]:
    return {
        "number": finding.number,
        "claim": finding.claim,
        "question": finding.question,
        "verdict": str(finding.verdict),
        "headline": finding.headline,
        "protocol": finding.protocol,
        "conditions": list(finding.conditions),
        "measures": [m.to_dict() for m in finding.measures],
        "charts": [asdict(c) for c in finding.charts],
        "tables": [asdict(t) for t in finding.tables],
        "facts": dict(finding.facts),
    }
