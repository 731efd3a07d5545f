"""What is recommended follows from the verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bntool.study.claims.base import Finding
from bntool.study.claims.depth import without_depth
from bntool.study.plan import Plan
from bntool.study.recommend import HELPS, UNDECIDED, advice, choose_norm, too_small
from bntool.study.statistics import Interval
from bntool.study.verdict import Measure, Verdict

PLAN = Plan()
YES, NO = Interval(0.1, 0.05, 0.15, 5, 0.95), Interval(0.0, -0.001, 0.001, 5, 0.95)


def finding(claim: str, verdict: Verdict, *measures: Measure) -> Finding:
    return Finding(PLAN.claims.index(claim) + 1, claim, "?", verdict, "headline", "how", measures)


def all_helpful(verdict: Verdict) -> dict[str, Finding]:
    return {c: finding(c, verdict) for c in HELPS}


@pytest.mark.parametrize(
    ("verdict", "norm"),
    [
        (Verdict.SHOWN, "batch"),
        (Verdict.NOT_SHOWN, "none"),
        (Verdict.REVERSED, "none"),
        (Verdict.INCONCLUSIVE, UNDECIDED),
    ],
)
def test_a_norm_is_advised_where_it_was_shown_to_help(verdict: Verdict, norm: str) -> None:
    assert choose_norm(PLAN, all_helpful(verdict))[0] == norm


@pytest.mark.parametrize("studied", [(), ("stability",), ("stability", "speed", "depth")])
def test_nothing_is_advised_on_half_of_the_claims(studied: tuple[str, ...]) -> None:
    found = {c: finding(c, Verdict.NOT_SHOWN) for c in studied}
    norm, sentences = choose_norm(PLAN, found)
    assert norm == UNDECIDED
    assert "which were not studied" in sentences[0]


def test_a_claim_that_no_budget_can_measure_is_not_waited_for() -> None:
    found = {**all_helpful(Verdict.NOT_SHOWN), "depth": without_depth()}
    assert choose_norm(PLAN, found)[0] == "none"


def test_nothing_is_advised_where_nothing_was_learnt() -> None:
    found = all_helpful(Verdict.SHOWN)
    found["speed"] = replace(found["speed"], verdict=Verdict.INCONCLUSIVE, facts={"learnt": False})
    assert choose_norm(PLAN, found)[0] == UNDECIDED


@pytest.mark.parametrize(("effect", "norm"), [(YES, "layer"), (NO, "batch")])
def test_another_norm_that_was_shown_to_be_better_is_advised(effect: Interval, norm: str) -> None:
    rival = Measure("layer over batch, shuffled batches", effect, 0.01, "of score", True)
    found = {**all_helpful(Verdict.SHOWN), "alternatives": finding("alternatives", Verdict.SHOWN, rival)}
    assert choose_norm(PLAN, found)[0] == norm


def test_batch_sizes_behind_the_other_norm_are_too_small() -> None:
    measures = [
        Measure(f"group ahead of batch at batch {size}", effect, 0.02, "of score")
        for size, effect in ((2, YES), (8, NO))
    ]
    found = {"small-batches": finding("small-batches", Verdict.SHOWN, *measures)}
    assert too_small(PLAN, found) == (2,)


def test_a_site_with_few_values_gets_another_norm() -> None:
    assert advice(PLAN, "batch", 4, ())[0] == "group"
    assert advice(PLAN, "batch", 512, ())[0] == "batch"
    assert advice(replace(PLAN, norms=("none", "batch")), "batch", 4, ())[0] == "none"
