"""Claims on results of which the answer is known."""

from __future__ import annotations

from dataclasses import replace

from plans import MLP, TINY, few, findings_of, setting_of

from bntool.study.claims.base import Finding
from bntool.study.claims.small_batches import compared
from bntool.study.claims.unlearnt import nothing_learnt, unless_learnt
from bntool.study.plan import Plan
from bntool.study.verdict import Verdict


def test_norms_made_for_small_batches_are_swept_too() -> None:
    norms = ("none", "batch", "group", "renorm", "ghost")
    plan = replace(TINY, norms=norms, claims=("small-batches",), seeds=2, rates=(0.05,))
    found = findings_of(few(setting_of(MLP)), plan)["small-batches"]
    assert {row[0] for row in found.tables[0].rows} == {"batch", "group", "renorm", "ghost"}
    assert found.facts["n_eff"] == {"2": 2, "8": 8}


def test_small_studies_sweep_one_other_norm_large_ones_all() -> None:
    assert compared(Plan(tier=3)) == ("batch", "group")
    assert compared(Plan(tier=7)) == ("batch", "group", "layer")


def test_networks_that_learn_nothing_decide_nothing() -> None:
    """Equal scores of 0 would else be "not shown", with an interval of no width."""
    plan = replace(TINY, claims=("regularisation", "alternatives", "stability"), rates=(1e-9,))
    found = findings_of(few(setting_of(MLP)), plan)
    for claim in ("regularisation", "alternatives"):
        assert found[claim].verdict is Verdict.INCONCLUSIVE
        assert "No network has learnt anything" in found[claim].headline
    assert nothing_learnt(list(found.values()))
    assert "learnt" not in found["stability"].facts


def test_one_network_that_learns_is_enough() -> None:
    shown = Finding(4, "depth", "?", Verdict.SHOWN, "headline", "how")
    results = [{"test_score": 0.1, "chance": 0.1}, {"test_score": 0.9, "chance": 0.1}]
    assert unless_learnt(shown, results) is shown
    assert unless_learnt(shown, results[:1]).verdict is Verdict.INCONCLUSIVE
    assert unless_learnt(shown, []) is shown
