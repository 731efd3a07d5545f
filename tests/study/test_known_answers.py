"""What is known of batch norm has to come out: published and analytic figures, on the digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plans import findings_of, setting_of

from bntool.study.backends import Processes, cores
from bntool.study.claims.base import Finding
from bntool.study.claims.signal_views import layers
from bntool.study.plan import Plan, octaves, tiered
from bntool.study.setting import run_trial
from bntool.study.signals import factor_per_layer
from bntool.study.trial import SIGNALS, Trial
from bntool.study.verdict import Verdict

MLP = "sample_models/mlp.py:mlp"


def study(ref: str, plan: Plan) -> dict[str, Finding]:
    pool = Processes(cores())
    try:
        return findings_of(setting_of(ref), plan, pool)
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("norm", "init", "low", "high"),
    [
        # theory: sqrt(pi / (pi - 1)) = 1.211 a layer with norm and ReLU, whatever the initialisation
        ("batch", "default", 1.15, 1.27),
        ("batch", "he", 1.15, 1.27),
        ("none", "default", 0.38, 0.50),
        ("none", "he", 0.97, 1.05),
    ],
)
@pytest.mark.parametrize("depth", [10, 20])
def test_gradient_factor_a_layer(norm: str, init: str, low: float, high: float, depth: int) -> None:
    setting = setting_of(f"{MLP}(depth={depth})")
    trials = [Trial(norm, seed, init=init, measures=(SIGNALS,)) for seed in range(3)]
    factors = [factor_per_layer(layers(run_trial(setting, t))) for t in trials]
    mean = sum(factors) / 3
    print(f"known answer: gradient factor a layer, depth {depth}, {norm}, {init} init: {mean:.3f}")
    assert low <= mean <= high


@pytest.mark.slow
def test_a_sigmoid_network_reaches_90_percent_in_an_eighth_of_the_steps() -> None:
    """Ioffe & Szegedy 2015, section 4.1: three hidden layers of 100 sigmoids, batches of 60."""
    plan = Plan(
        norms=("none", "batch"),
        claims=("speed",),
        seeds=5,
        tuning_seeds=2,
        rates=octaves(-4, 5),
        steps=1500,
        batch_size=60,
        target=0.9,
    )
    found = study(f"{MLP}(activation='sigmoid')", plan)["speed"]
    effect = found.measures[0].effect
    print(f"known answer: sigmoid MLP, steps to 90 %: {found.headline} ratio {2**effect.estimate:.1f}")
    assert found.verdict is Verdict.SHOWN
    assert effect.estimate >= 3.0  # a factor of eight, in halvings


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "init", "least"), [(3, "default", 4.0), (10, "he", 8.0)])
def test_largest_rate_that_trains(depth: int, init: str, least: float) -> None:
    """At depth 10 with He initialisation: with PyTorch's own, the plain network trains at no rate."""
    setting = setting_of(f"{MLP}(depth={depth})")
    works = {}
    for norm in ("none", "batch"):
        trials = {
            rate: [Trial(norm, seed, rate, 200, init=init) for seed in range(3)] for rate in octaves(-6, 5)
        }
        pool = Processes(cores())
        try:
            results = dict(pool.run(setting, [t for cell in trials.values() for t in cell]))
        finally:
            pool.close()
        works[norm] = [r for r, cell in trials.items() if min(results[t]["test_score"] for t in cell) >= 0.8]
    ratio = max(works["batch"]) / max(works["none"])
    print(f"known answer: largest rate that trains, depth {depth}, {init} init: {ratio:g} times ({works})")
    assert ratio >= least


@pytest.mark.slow
def test_depth_20_with_default_initialisation_needs_the_norm() -> None:
    plan = Plan(
        norms=("none", "batch"),
        claims=("depth",),
        seeds=3,
        tuning_seeds=1,
        rates=octaves(-6, 2, 2),
        spacing=1,
        steps=400,
        vary="depth",
        depths=(3, 20),
        depth_inits=("default",),
    )
    found = study(MLP, plan)["depth"]
    scores = found.facts["scores"]
    print(f"known answer: depth 20, default init: {found.headline}")
    assert max(scores["none/default/20"]) <= 0.2
    assert min(scores["batch/default/20"]) >= 0.9
    assert found.verdict is Verdict.SHOWN


@pytest.mark.slow
def test_batch_norm_fails_at_batches_of_two_and_not_at_eight() -> None:
    plan = Plan(
        norms=("none", "batch", "group"),
        claims=("small-batches",),
        seeds=5,
        tuning_seeds=2,
        rates=octaves(-8, -1),
        spacing=1,
        batch_sizes=(2, 8, 32),
        small_steps=180,
        small_examples=1437,
    )
    found = study(MLP, plan)["small-batches"]
    scores = {k: sum(v) / len(v) for k, v in found.facts["scores"].items()}
    print(f"known answer: {found.headline} At batch 8: {scores['batch/8']:.3f}, {scores['group/8']:.3f}.")
    assert scores["group/2"] - scores["batch/2"] >= 0.2
    assert abs(scores["group/8"] - scores["batch/8"]) <= 0.03
    assert found.verdict is Verdict.SHOWN


@pytest.mark.slow
def test_regularisation_is_not_shown_on_digits() -> None:
    plan = replace(tiered(Plan(norms=("none", "batch"), claims=("regularisation",)), 7), seeds=8)
    found = study(MLP, plan)["regularisation"]
    print(f"known answer: regularisation: {found.verdict}. {found.headline}")
    assert found.verdict in (Verdict.NOT_SHOWN, Verdict.INCONCLUSIVE)
