"""A claim there was no time for: it says so in its place."""

from __future__ import annotations

from bntool.study.claims.base import Claim, Finding, Known
from bntool.study.plan import CLAIMS, Plan
from bntool.study.verdict import Verdict


def unmeasured(number: int, key: str, question: str, why: str, advice: str, possible: bool = True) -> Finding:
    """Inconclusive, because nothing was run. `possible`: a larger budget would run it."""
    headline, facts = f"Not measured: {why}", {"possible": possible}
    return Finding(
        number, key, question, Verdict.INCONCLUSIVE, headline, "Not run.", conditions=(advice,), facts=facts
    )


class Unmeasured:
    """Stands for a claim and needs no trial."""

    def __init__(self, claim: Claim) -> None:
        self.key, self.question = claim.key, claim.question

    def judge(self, plan: Plan, known: Known) -> Finding:
        return unmeasured(
            CLAIMS.index(self.key) + 1,
            self.key,
            self.question,
            "the budget is too short for it with this model.",
            "Give a larger --budget, or name fewer claims.",
        )
