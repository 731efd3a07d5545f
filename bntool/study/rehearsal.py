"""Go through a study with made-up results: which trials it will need, before one has run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bntool.study.claims.base import Claim, Known, Needed
from bntool.study.plan import Plan
from bntool.study.training import evaluation_steps
from bntool.study.trial import COST, EXACT, LANDSCAPE, SHIFT, SIGNALS, Trial


def expected(plan: Plan, claims: Sequence[Claim]) -> list[Trial]:
    """The trials of a study whose arms each prefer a rate of their own: as many as it can need."""
    results: dict[str, dict[str, Any]] = {}
    trials: list[Trial] = []
    for claim in claims:
        while True:
            try:
                claim.judge(plan, Known(results))
                break
            except Needed as need:
                fresh = {t.key: t for t in need.trials}
                trials += fresh.values()
                results.update({k: made_up(plan, t) for k, t in fresh.items()})
    return trials


def made_up(plan: Plan, trial: Trial) -> dict[str, Any]:
    """A result of the right shape."""
    if COST in trial.measures:
        return made_up_cost()
    favourite = (plan.norms.index(trial.norm) + (2 if trial.dropout else 0)) % len(plan.coarse_rates)
    score = 0.9 if trial.rate == plan.coarse_rates[favourite] else 0.8
    steps = evaluation_steps(trial.steps)
    marks = sorted({0, trial.steps // 4, trial.steps})
    layers = [{"name": str(k), "gradient": 1.0, "deviation": 1.0, "dead": 0.0, "rank": 0.5} for k in range(3)]
    return {
        "steps": steps,
        "loss": [1.0] * len(steps),
        "score": [score] * len(steps) if trial.followed else [],
        "train_score": 1.0,
        "test_score": score if steps else 0.1,
        "diverged": False,
        "chance": 0.1,
        SIGNALS: [{"step": m, "layers": layers} for m in marks],
        LANDSCAPE: [{"step": m, "loss_range": 1.0, "gradient_change": 1.0} for m in marks],
        "exact_score": score if EXACT in trial.measures else 0.0,
        "n_eff": {"norm": trial.batch_size},
        "variance_shift": {"norm": 1.0} if SHIFT in trial.measures else {},
        "wall_s": 0.0,
    }


def made_up_cost() -> dict[str, Any]:
    def row(name: str) -> dict[str, Any]:
        return {"name": name, "median_s": 1.0, "estimate": 1.0, "low": 1.0, "high": 1.0, "confidence": 0.95}

    sizes = {"plain": 1, "norm": 1}
    timed = [row("plain"), row("norm")]
    return {"step": timed, "inference": timed, "saved_bytes": sizes, "weight_bytes": sizes, "fold_note": ""}
