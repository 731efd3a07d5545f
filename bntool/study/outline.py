"""What a study will do, settled before the first trial: model and data that fit, the plan, the time it
takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bntool.errors import RunError, UsageError
from bntool.progress import Progress, silent
from bntool.sources.importing import said
from bntool.study import budget as budgets
from bntool.study.arms import PLAIN, check_norms, has_any, is_control, own_norm
from bntool.study.backends import cores
from bntool.study.claims.base import Claim
from bntool.study.claims.table import chosen
from bntool.study.claims.unmeasured import Unmeasured
from bntool.study.data import Data
from bntool.study.datasets import load_data
from bntool.study.deepening import EXTRA, can_deepen
from bntool.study.fitting import fit_inputs, fit_targets
from bntool.study.plan import Plan, tiered
from bntool.study.rehearsal import expected
from bntool.study.scoring import Loss, start_loss
from bntool.study.setting import Setting
from bntool.study.source import ModelSource
from bntool.study.training import EVALUATED
from bntool.study.trial import COST, OPTIMIZERS, Trial
from bntool.study.usable import insist_on_a_question, insist_on_values, one_class_each

#: share of the budget that goes into timing, and its bounds in seconds
COST_SHARE, COST_LEAST, COST_MOST = 0.05, 1.0, 20.0


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None or "" leaves it to the budget."""

    claims: tuple[str, ...] = ("all",)
    norms: tuple[str, ...] = ("none", "batch", "group", "layer")
    seeds: int | None = None
    budget_s: float = 180.0
    tier: int | None = None
    seed: int = 0
    vary: str = ""
    batch_size: int = 32
    workers: int | None = None
    target: float = 0.0
    optimizer: str = "sgd"


@dataclass(frozen=True)
class Outline:
    """`times_s` is what each trial is expected to take on one core (by key), none without a measured
    speed.
    """

    setting: Setting
    claims: tuple[Claim, ...]
    plan: Plan
    workers: int
    times_s: dict[str, float]

    @property
    def expected_s(self) -> float:
        """Seconds the study is expected to take."""
        return sum(self.times_s.values()) / self.workers

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "study outline",
            "model": self.setting.source.name,
            "data": self.setting.data.name,
            "notes": list(self.setting.data.notes),
            "plan": self.plan.to_dict(),
            "trials": len(expected(self.plan, self.claims)),
            "workers": self.workers,
            "expected_s": round(self.expected_s, 1),
        }


def outline(setting: Setting, wishes: Wishes, *, progress: Progress = silent) -> Outline:
    """Choose the plan: measure the speed, take the largest tier that fits the budget, keep what was asked
    for.

    Raises: UsageError when the wishes do not go with the model or the data.
    """
    claims = chosen(wishes.claims)
    start = Plan(
        norms=check_norms(wishes.norms),
        claims=tuple(c.key for c in claims),
        seed=wishes.seed,
        target=wishes.target,
        batch_size=max(2, min(wishes.batch_size, len(setting.data.train) // 4)),
        optimizer=known_optimizer(wishes.optimizer),
    )
    check_arms(setting, start)
    start = varied(start, setting, wishes.vary)
    cost_s = min(max(COST_SHARE * wishes.budget_s, COST_LEAST), COST_MOST)
    setting = replace(setting, cost_budget_s=cost_s)
    workers = wishes.workers or cores()
    progress("measuring the speed", 0, 0)
    speed = budgets.measure(setting, start)
    tier = wishes.tier
    if tier is None:
        tier = budgets.choose_tier(speed, start, claims, workers, wishes.budget_s, cost_s)
    plan = fit_to_data(sized(start, setting.source, tier, wishes), setting.data)
    if tier == 0 and wishes.tier is None:
        skipped = budgets.too_long(speed, plan, claims, workers, wishes.budget_s, cost_s)
        plan = replace(plan, skipped=skipped)
    return settled(setting, planned_claims(plan), plan, workers, speed)


def planned_claims(plan: Plan) -> tuple[Claim, ...]:
    """The plan's claims, those without time as ones that need no trial."""
    return tuple(Unmeasured(c) if c.key in plan.skipped else c for c in chosen(plan.claims))


def known_optimizer(name: str) -> str:
    """Raises: UsageError."""
    if name not in OPTIMIZERS:
        what = f"unknown optimizer {name!r}"
        raise UsageError(what, where="--optimizer", next=f"Use {', '.join(OPTIMIZERS)}.")
    return name


def settled(
    setting: Setting, claims: Sequence[Claim], plan: Plan, workers: int, speed: budgets.Speed | None = None
) -> Outline:
    """The outline of a plan that is fixed already."""
    trials = expected(plan, claims)
    times = {t.key: speed.of(t, plan, setting.cost_budget_s) if speed else 1.0 for t in trials}
    alone = {t.key for t in trials if COST in t.measures}
    # a timing has the machine for itself: it counts as if every worker were at it
    times = {k: v * workers if k in alone else v for k, v in times.items()}
    return Outline(setting, tuple(claims), plan, workers, times)


def sized(start: Plan, source: ModelSource, tier: int, wishes: Wishes) -> Plan:
    """The plan with the sizes of its tier, and what the user fixed."""
    plan = tiered(start, tier)
    found = source.depth_argument()
    if plan.vary == EXTRA:
        plan = replace(plan, depths=tuple(f - 1 for f in plan.depth_factors))
    elif plan.vary and not wishes.vary and found is not None:
        plan = replace(plan, depths=deeper(found[1], plan.depth_factors))
    return plan if wishes.seeds is None else replace(plan, seeds=wishes.seeds)


def prepare(source: ModelSource, data: Any, example_inputs: Any, loss_fn: Loss | None) -> Setting:
    """The model's source with data that fit it; one forward pass has worked.

    Raises: UsageError, LoadError, RunError.
    """
    wanted = as_tuple(example_inputs) if example_inputs is not None else source.example_inputs()
    loaded = load_data(data, image_size=image_size(wanted))
    insist_on_values(loaded)
    if wanted is not None:
        loaded = fit_inputs(loaded, wanted)
    output = first_output(source, loaded)
    if loss_fn is None:
        loaded = fit_targets(one_class_each(loaded), output)
        insist_on_a_question(loaded)
    setting = Setting(source, loaded, loss_fn)
    if loss_fn is not None:
        setting = replace(setting, start_loss=first_loss(source, loaded, loss_fn))
    return setting


def as_tuple(inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def image_size(wanted: tuple[torch.Tensor, ...] | None) -> tuple[int, int]:
    if wanted and wanted[0].dim() == 4:
        return int(wanted[0].shape[2]), int(wanted[0].shape[3])
    return 32, 32


def first_output(source: ModelSource, data: Data) -> Any:
    """What the model says to four examples."""
    model = source.fresh(0).eval()
    try:
        with torch.no_grad():
            return model(*data.train.first(4).inputs)
    except Exception as problem:
        shapes = ", ".join("x".join(map(str, x.shape)) for x in data.train.first(4).inputs)
        raise RunError(
            f"the model cannot take the data ({shapes}): {said(problem)}",
            where=source.name,
            next="Define example_inputs() beside the factory, or give data made for it.",
        ) from problem


def first_loss(source: ModelSource, data: Data, loss_fn: Loss) -> float:
    """What the user's own loss is before any training. Raises: RunError where it does not give a number."""
    try:
        return start_loss(source.fresh(0), data.test.first(EVALUATED), loss_fn)
    except Exception as problem:
        raise RunError(
            f"the loss cannot judge the model's output: {said(problem)}",
            where="--loss",
            next="It is called as loss(output, target) with a batch of both, and gives one number.",
        ) from problem


def varied(plan: Plan, setting: Setting, vary: str) -> Plan:
    """The plan with what makes the network deeper: as asked for, an argument of the factory, or more layers.

    Layers are added to networks without norms of their own, which the new layers would have to have too.
    """
    source = setting.source
    if vary:
        name, values = parse_vary(vary)
        if name not in source.arguments():
            known = ", ".join(source.arguments()) or "none"
            what = f"the factory has no argument {name!r}"
            raise UsageError(what, where="--vary", next=f"It has: {known}.")
        return replace(plan, vary=name, depths=values)
    found = source.depth_argument()
    if found is not None:
        return replace(plan, vary=found[0], depths=deeper(found[1], plan.depth_factors))
    model = source.fresh(plan.seed)
    if own_norm(model) != PLAIN or not can_deepen(model, setting.example()):
        return plan
    return replace(plan, vary=EXTRA, depths=tuple(f - 1 for f in plan.depth_factors))


def deeper(value: int, factors: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(value, 1) * f for f in factors)


def parse_vary(text: str) -> tuple[str, tuple[int, ...]]:
    """ "depth=5,10,20". Raises: UsageError."""
    name, _, values = text.partition("=")
    try:
        numbers = tuple(sorted({int(v) for v in values.split(",")}))
    except ValueError:
        numbers = ()
    if not name.strip() or len(numbers) < 2:
        raise UsageError(f"cannot read {text!r}", where="--vary", next="Write depth=5,10,20.")
    return name.strip(), numbers


def fit_to_data(plan: Plan, data: Data) -> Plan:
    """Never more examples than there are; batch sizes that leave a few batches an epoch."""
    most = len(data.train)
    sizes = tuple(s for s in plan.batch_sizes if s <= most // 4) or (2,)
    return replace(plan, fit_examples=min(plan.fit_examples, most), batch_sizes=sizes)


def check_arms(setting: Setting, plan: Plan) -> None:
    """Build every arm once. Raises: UsageError when a norm has no place in this model."""
    kinds = {n: Counter(type(m) for m in setting.build(Trial(n, plan.seed)).modules()) for n in plan.norms}
    plain = setting.build(Trial(PLAIN, plan.seed))
    for norm, found in kinds.items():
        same = found == Counter(type(m) for m in plain.modules())
        if same and norm != PLAIN and not is_control(norm):
            what = f"{norm} norm has no place in this model"
            rest = " Its own layer norms stay in every arm." if has_any(plain, (nn.LayerNorm,)) else ""
            raise UsageError(what, where=setting.source.name, next=f"Leave it out of --norms.{rest}")
