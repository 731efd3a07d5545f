"""Studies small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bntool.study.backends import Backend, Here
from bntool.study.claims.base import Finding
from bntool.study.claims.table import chosen
from bntool.study.data import Data
from bntool.study.journal import Journal
from bntool.study.outline import Wishes, fit_to_data, outline, prepare
from bntool.study.plan import Plan
from bntool.study.scheduler import investigate
from bntool.study.setting import Setting
from bntool.study.source import source_of

MLP = "sample_models/mlp.py:mlp"

#: a few steps of everything: enough to go through every line, too few to learn
TINY = Plan(
    norms=("none", "batch", "group"),
    seeds=2,
    tuning_seeds=1,
    rates=(0.05, 0.2),
    spacing=1,
    steps=4,
    fit_examples=32,
    fit_steps=4,
    batch_size=16,
    batch_sizes=(2, 8),
    small_steps=4,
    small_examples=16,
    inits=("default", "he"),
)


def setting_of(model: Any, data: Any = "digits") -> Setting:
    return replace(prepare(source_of(model), data, None, None), cost_budget_s=0.2)


def few(setting: Setting) -> Setting:
    """The setting with a few of its examples."""
    data = setting.data
    return replace(setting, data=Data(data.name, data.train.first(160), data.test.first(60), data.notes))


def findings_of(
    setting: Setting, plan: Plan, backend: Backend | None = None, journal: Journal | None = None
) -> dict[str, Finding]:
    """The findings of a fixed plan, by claim."""
    claims = chosen(plan.claims)
    found = investigate(plan, claims, setting, journal or Journal(None, {}), backend or Here())
    return {f.claim: f for f in found}


def tiny_for(setting: Setting, **changes: Any) -> Plan:
    """TINY with what the model and data allow."""
    started = outline(setting, Wishes(tier=0, workers=1, norms=TINY.norms)).plan
    depths = tuple(started.depths[:1]) + tuple(d + 1 for d in started.depths[:1])
    return fit_to_data(replace(TINY, vary=started.vary, depths=depths, **changes), setting.data)
