"""Scores say nothing about norms where no network has learnt anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bntool.study.claims.base import Finding, Result
from bntool.study.verdict import Verdict

#: the claims that scores decide
BY_SCORE = ("speed", "regularisation", "depth", "small-batches", "alternatives")
#: share of the way from chance to a perfect score that some network has to go
SOME = 0.05

ADVICE = "Give a larger --budget or another --optimizer; see that the data suit the model, and are scaled."


def unless_learnt(finding: Finding, results: Iterable[Result]) -> Finding:
    """The finding; without a verdict where the best of the networks it rests on knows as good as nothing."""
    scored = [(float(r["test_score"]), float(r["chance"])) for r in results if "test_score" in r]
    learnt = any(score - chance > SOME * (1 - chance) for score, chance in scored)
    if finding.claim not in BY_SCORE or learnt or not scored:
        return finding
    best, chance = max(scored)
    headline = f"No network has learnt anything: the best test score is {best:.3f}, chance {chance:.3f}."
    return replace(
        finding,
        verdict=Verdict.INCONCLUSIVE,
        headline=headline,
        conditions=(*finding.conditions, ADVICE),
        facts={**finding.facts, "learnt": False},
    )


def nothing_learnt(findings: Sequence[Finding]) -> bool:
    return any(f.facts.get("learnt") is False for f in findings)
