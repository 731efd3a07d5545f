"""study(model) -> what batch norm does for this model: seven claims measured, with verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bntool.errors import RunError, UsageError
from bntool.progress import Progress, silent
from bntool.study import budget as budgets
from bntool.study.arms import check_norms
from bntool.study.backends import Backend, Here, cores, local
from bntool.study.claims.base import Claim, Finding
from bntool.study.claims.table import chosen
from bntool.study.data import Data
from bntool.study.datasets import load_data
from bntool.study.document import document
from bntool.study.fitting import fit_inputs, fit_targets
from bntool.study.journal import Journal, stored_plan
from bntool.study.plan import Plan, tiered
from bntool.study.recommend import Recommendation, recommend
from bntool.study.rehearsal import expected
from bntool.study.scheduler import investigate
from bntool.study.setting import Setting
from bntool.study.source import ModelSource, source_of
from bntool.study.training import Loss
from bntool.study.trial import Trial

#: share of the budget that goes into timing, and its bounds in seconds
COST_SHARE, COST_LEAST, COST_MOST = 0.05, 1.0, 20.0


@dataclass(frozen=True)
class Study:
    """The outcome: one finding a claim, and what follows for the model. `notes` say how data were fitted."""

    model: str
    data: str
    plan: Plan
    findings: tuple[Finding, ...]
    recommendation: Recommendation
    notes: tuple[str, ...] = ()
    trials: int = 0

    @property
    def verdicts(self) -> dict[str, str]:
        return {f.claim: str(f.verdict) for f in self.findings}

    def finding(self, claim: str) -> Finding:
        return next(f for f in self.findings if f.claim == claim)

    def to_dict(self) -> dict[str, Any]:
        return document(self)


def study(
    model: Any,
    *,
    data: Any = "digits",
    claims: str | Sequence[str] = "all",
    norms: Sequence[str] = ("none", "batch", "group", "layer"),
    seeds: int | None = None,
    budget: str | float = "3m",
    tier: int | None = None,
    seed: int = 0,
    vary: str = "",
    batch_size: int = 32,
    loss_fn: Loss | None = None,
    example_inputs: Any = None,
    workers: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
    autocast: bool = False,
    trust: bool = False,
    run_dir: str | Path | None = None,
    resume: bool = False,
    plan: Plan | None = None,
    watch: Callable[[Trial, dict[str, Any]], None] | None = None,
    progress: Progress = silent,
) -> Study:
    """Measure seven claims about batch norm on a model and data; returns verdicts with effects and intervals.

    `model` is a reference, a module (started anew for every seed) or a function that makes one. `data` is a
    reference ("digits", file.py:factory, .npz, .safetensors, a folder of images), tensors (x, y), data
    sets or loaders. `norms` are the baseline, the norm in question, then alternatives. `budget` ("3m",
    seconds) chooses steps, grid and seeds before the first trial; `tier` or `plan` fixes them. `vary` is
    "depth=5,10,20". `loss_fn` takes the model's output and the targets. `run_dir` keeps finished trials,
    `resume` goes on there. `ray` is a cluster's address ("" starts one here).

    Raises: UsageError when options, model and data do not go together; LoadError when one cannot be read;
    RunError when the model fails.
    """
    wanted = chosen([c.strip() for c in claims.split(",")] if isinstance(claims, str) else list(claims))
    setting = prepare(source_of(model, trust=trust), data, example_inputs, loss_fn)
    setting = replace(setting, device=device, autocast=autocast)
    folder = Path(run_dir) if run_dir is not None else None
    start = plan or Plan(
        norms=check_norms(norms), claims=tuple(c.key for c in wanted), seed=seed, batch_size=batch_size
    )
    count = workers or cores()
    seconds = budgets.seconds(budget)
    setting = replace(setting, cost_budget_s=min(max(COST_SHARE * seconds, COST_LEAST), COST_MOST))
    stored = stored_plan(folder) if folder is not None and resume else None
    speed = None
    if stored is not None:
        final = Plan.from_dict(stored)
    elif plan is not None:
        final = plan
    else:
        start = smaller_batches(varied(start, setting.source, vary), setting.data)
        if tier is None:
            progress("measuring the speed", 0, 0)
            speed = budgets.measure(setting, start)
        final = planned(start, setting, wanted, tier, speed, count, seconds, seeds, vary)
    identity = {"plan": final.to_dict(), "model": setting.source.name, "data": setting.data.fingerprint()}
    journal = Journal(folder, identity, resume=resume)
    backend = choose_backend(setting, count, ray)
    times = {
        t.key: speed.of(t, final, setting.cost_budget_s) if speed else 1.0 for t in expected(final, wanted)
    }
    try:
        findings = investigate(
            final, wanted, setting, journal, backend, expected_s=times, progress=progress, watch=watch
        )
    finally:
        backend.close()
    return Study(
        setting.source.name,
        setting.data.name,
        final,
        tuple(findings),
        recommend(final, findings, setting),
        setting.data.notes,
        len(journal.results),
    )


def prepare(source: ModelSource, data: Any, example_inputs: Any, loss_fn: Loss | None) -> Setting:
    """The model's source with data that fit it; one forward pass has worked.

    Raises: UsageError, LoadError, RunError.
    """
    wanted = as_tuple(example_inputs) if example_inputs is not None else source.example_inputs()
    loaded = load_data(data, image_size=image_size(wanted))
    if wanted is not None:
        loaded = fit_inputs(loaded, wanted)
    output = first_output(source, loaded)
    if loss_fn is None:
        loaded = fit_targets(loaded, output)
    return Setting(source, loaded, loss_fn)


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
            f"the model cannot take the data ({shapes}): {type(problem).__name__}: {problem}",
            where=source.name,
            next="Define example_inputs() beside the factory, or give data made for it.",
        ) from problem


def varied(plan: Plan, source: ModelSource, vary: str) -> Plan:
    """The plan with the argument that sets the depth: as asked for, or as found in the factory's
    signature.
    """
    if vary:
        name, values = parse_vary(vary)
        if name not in source.arguments():
            known = ", ".join(source.arguments()) or "none"
            raise UsageError(
                f"the factory has no argument {name!r}", where="--vary", next=f"It has: {known}."
            )
        return replace(plan, vary=name, depths=values)
    found = source.depth_argument()
    return (
        plan if found is None else replace(plan, vary=found[0], depths=deeper(found[1], plan.depth_factors))
    )


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


def smaller_batches(plan: Plan, data: Data) -> Plan:
    """Batches of at most a quarter of the training part."""
    return replace(plan, batch_size=max(2, min(plan.batch_size, len(data.train) // 4)))


def planned(
    start: Plan,
    setting: Setting,
    claims: Sequence[Claim],
    tier: int | None,
    speed: budgets.Speed | None,
    workers: int,
    seconds: float,
    seeds: int | None,
    vary: str,
) -> Plan:
    """The plan with the sizes of its tier, and what the user fixed."""
    if tier is None:
        assert speed is not None
        tier, _ = budgets.choose_tier(speed, start, claims, workers, seconds, setting.cost_budget_s)
    plan = tiered(start, tier)
    found = setting.source.depth_argument()
    if plan.vary and not vary and found is not None:
        plan = replace(plan, depths=deeper(found[1], plan.depth_factors))
    if seeds is not None:
        plan = replace(plan, seeds=seeds)
    return fit_to_data(plan, setting.data)


def fit_to_data(plan: Plan, data: Data) -> Plan:
    """Never more examples than there are; batch sizes that leave a few batches an epoch."""
    most = len(data.train)
    sizes = tuple(s for s in plan.batch_sizes if s <= most // 4) or (2,)
    return replace(plan, fit_examples=min(plan.fit_examples, most), batch_sizes=sizes)


def choose_backend(setting: Setting, workers: int, ray: str | None) -> Backend:
    if ray is not None:
        from bntool.study.ray_backend import OnRay

        return OnRay(ray, workers)
    return Here() if setting.device != "cpu" else local(setting, workers)
