"""Claims on results of which the answer is known."""

from __future__ import annotations

from dataclasses import replace

from plans import MLP, TINY, few, findings_of, setting_of

from bntool.study.claims.small_batches import compared
from bntool.study.plan import Plan


def test_norms_made_for_small_batches_are_swept_too() -> None:
    norms = ("none", "batch", "group", "renorm", "ghost")
    plan = replace(TINY, norms=norms, claims=("small-batches",), seeds=2, rates=(0.05,))
    found = findings_of(few(setting_of(MLP)), plan)["small-batches"]
    assert {row[0] for row in found.tables[0].rows} == {"batch", "group", "renorm", "ghost"}
    assert found.facts["n_eff"] == {"2": 2, "8": 8}


def test_small_studies_sweep_one_other_norm_large_ones_all() -> None:
    assert compared(Plan(tier=3)) == ("batch", "group")
    assert compared(Plan(tier=7)) == ("batch", "group", "layer")
