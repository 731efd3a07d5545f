"""The negative control: identical arms must come out "not shown" everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
from plans import MLP, findings_of, setting_of, tiny_for

from bntool.bench.paired import compare_callables
from bntool.study.backends import Processes, cores
from bntool.study.claims.base import difference, scores
from bntool.study.plan import Plan, tiered
from bntool.study.trial import Trial
from bntool.study.verdict import Verdict, decide

ARMS = ("none", "control", "control-2")


def steady_clock(call: Callable[[], object], loops: int) -> float:
    """Every call takes a millisecond."""
    call()
    return 1e-3 * loops


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings without the machine's noise: what is tested is what the study makes of them."""

    def steady(calls: dict, **options: object) -> list:
        return compare_callables(calls, **options, clock=steady_clock, rounds=12)

    monkeypatch.setattr(import_module("bntool.study.cost"), "compare_callables", steady)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("seed", [0, 11])
def test_identical_arms_show_nothing(seed: int) -> None:
    setting = setting_of(MLP)
    # long enough for every arm to learn: where none does a study has nothing to compare, and says so
    longer = {"steps": 40, "rates": (0.2, 0.6), "batch_sizes": (4, 16), "small_steps": 40}
    plan = replace(tiny_for(setting, norms=ARMS, seed=seed), **longer)
    found = findings_of(setting, plan)
    assert {f.claim: str(f.verdict) for f in found.values()} == dict.fromkeys(plan.claims, "not shown")


@pytest.mark.slow
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("seed", range(5))
def test_identical_arms_show_nothing_in_a_study_that_learns(seed: int) -> None:
    setting = setting_of(MLP)
    plan = replace(tiered(Plan(norms=ARMS, seed=100 * seed), 2), vary="depth", depths=(1, 3))
    pool = Processes(cores())
    try:
        found = findings_of(setting, plan, pool)
    finally:
        pool.close()
    assert {f.claim: str(f.verdict) for f in found.values()} == dict.fromkeys(plan.claims, "not shown")


@pytest.mark.usefixtures("clock")
def test_networks_that_never_learn_are_no_evidence_of_absence() -> None:
    setting = setting_of(MLP)
    plan = replace(tiny_for(setting, norms=ARMS, claims=("depth", "small-batches")), rates=(1e-9,), steps=2)
    found = findings_of(setting, plan)
    assert {str(f.verdict) for f in found.values()} == {"inconclusive"}
    assert "no network learns" in " ".join(found["small-batches"].conditions)


@pytest.mark.slow
def test_the_same_arm_under_other_seeds_is_hardly_ever_an_effect() -> None:
    """Sixteen comparisons of five seeds against five others, at the level that one claim of seven has."""
    setting, plan = setting_of(MLP), Plan()
    trials = [Trial("batch", seed, 0.2, 96, examples=256) for seed in range(160)]
    pool = Processes(cores())
    try:
        results = dict(pool.run(setting, trials))
    finally:
        pool.close()
    found = scores(results[t] for t in trials)
    verdicts = [
        decide(difference(found[k : k + 5], found[k + 5 : k + 10], plan.family_level), 0.01)
        for k in range(0, 160, 10)
    ]
    # 0.7 % each: two or more of sixteen would happen in less than 1 % of runs
    assert sum(v in (Verdict.SHOWN, Verdict.REVERSED) for v in verdicts) <= 1
    assert len(set(found)) > 5
