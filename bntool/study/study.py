"""study(model) -> what batch norm does for this model: seven claims measured, with verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bntool.progress import Progress, silent
from bntool.report.study_html import study_page
from bntool.report.study_markdown import study_markdown
from bntool.study import budget as budgets
from bntool.study.backends import Backend, Here, cores, local
from bntool.study.claims.base import Finding
from bntool.study.document import document
from bntool.study.journal import Journal, stored_plan
from bntool.study.outline import Outline, Wishes, outline, planned_claims, prepare, settled
from bntool.study.plan import Plan
from bntool.study.recommend import Recommendation, recommend
from bntool.study.scheduler import investigate
from bntool.study.scoring import Loss
from bntool.study.source import source_of
from bntool.study.training import SCORED
from bntool.study.trial import Trial

Watch = Callable[[Trial, dict[str, Any]], None]


@dataclass(frozen=True)
class Study:
    """The outcome: one finding a claim, and what follows for the model.

    `notes` say how data were fitted, `score` what a score is here.
    """

    model: str
    data: str
    plan: Plan
    findings: tuple[Finding, ...]
    recommendation: Recommendation
    notes: tuple[str, ...] = ()
    trials: int = 0
    score: str = ""

    @property
    def verdicts(self) -> dict[str, str]:
        return {f.claim: str(f.verdict) for f in self.findings}

    def finding(self, claim: str) -> Finding:
        return next(f for f in self.findings if f.claim == claim)

    def to_dict(self) -> dict[str, Any]:
        return document(self)

    def html(self) -> str:
        """One page that works offline."""
        return study_page(self.to_dict())

    def markdown(self) -> str:
        return study_markdown(self.to_dict())


def study(
    model: Any,
    *,
    data: Any = "digits",
    claims: str | Sequence[str] = "all",
    norms: str | Sequence[str] = ("none", "batch", "group", "layer"),
    seeds: int | None = None,
    budget: str | float = "3m",
    tier: int | None = None,
    seed: int = 0,
    vary: str = "",
    batch_size: int = 32,
    target: float = 0.0,
    optimizer: str = "sgd",
    loss_fn: Loss | None = None,
    example_inputs: Any = None,
    workers: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
    autocast: bool = False,
    trust: bool = False,
    run_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Study:
    """Measure seven claims about batch norm on a model and data; returns verdicts with effects and intervals.

    `model` is a reference, a module (started anew for every seed) or a function that makes one. `data` is a
    reference ("digits", file.py:factory, .npz, .safetensors, a folder of images), tensors (x, y), data sets
    or loaders. `norms` are the baseline, the norm in question, then alternatives. `budget` ("3m", seconds)
    chooses steps, grid and seeds before the first trial; `tier` (0 to 9) fixes them. `vary` names depths, as
    in "depth=5,10,20". `optimizer` is sgd, momentum or adam. `target` is the score to reach in claim 2 (0:
    set by what the arms reach). `loss_fn` takes the model's output and the targets. `run_dir` keeps finished
    trials, `resume` goes on there. `ray` is a cluster's address ("local" starts one here). `watch` sees every
    result.

    Raises: UsageError when options, model and data do not go together; LoadError when one cannot be read;
    RunError when the model fails.
    """
    wishes = Wishes(
        named(claims),
        named(norms),
        seeds,
        budgets.seconds(budget),
        tier,
        seed,
        vary,
        batch_size,
        workers,
        target,
        optimizer,
    )
    setting = prepare(source_of(model, trust=trust), data, example_inputs, loss_fn)
    setting = replace(setting, device=device, autocast=autocast)
    folder = Path(run_dir) if run_dir is not None else None
    stored = stored_plan(folder) if folder is not None and resume else None
    if stored is not None:
        plan = Plan.from_dict(stored)
        work = settled(setting, planned_claims(plan), plan, workers or cores())
    else:
        work = outline(setting, wishes, progress=progress)
    journal = Journal(folder, identity(work), resume=resume)
    return carry_out(work, journal, choose_backend(work, ray), watch=watch, progress=progress)


def planned(
    model: Any,
    *,
    data: Any = "digits",
    example_inputs: Any = None,
    loss_fn: Loss | None = None,
    **wishes: Any,
) -> Outline:
    """What study(model, ...) would do, without a trial: options as there.

    Raises: UsageError, LoadError, RunError.
    """
    setting = prepare(source_of(model, trust=wishes.pop("trust", False)), data, example_inputs, loss_fn)
    progress = wishes.pop("progress", silent)
    seconds = budgets.seconds(wishes.pop("budget", "3m"))
    wishes.update({key: named(wishes[key]) for key in ("claims", "norms") if key in wishes})
    return outline(setting, Wishes(budget_s=seconds, **wishes), progress=progress)


def named(names: str | Sequence[str]) -> tuple[str, ...]:
    """ "a,b" or a sequence of names."""
    return tuple(n.strip() for n in names.split(",")) if isinstance(names, str) else tuple(names)


def identity(work: Outline) -> dict[str, Any]:
    """What makes two studies the same, so that one can go on where the other stopped."""
    data = work.setting.data.fingerprint()
    return {"plan": work.plan.to_dict(), "model": work.setting.source.name, "data": data}


def carry_out(
    work: Outline, journal: Journal, backend: Backend, *, watch: Watch | None, progress: Progress
) -> Study:
    """Run the trials and judge the claims; the backend is closed whatever happens."""
    try:
        findings = investigate(
            work.plan,
            work.claims,
            work.setting,
            journal,
            backend,
            expected_s=work.times_s,
            progress=progress,
            watch=watch,
        )
    finally:
        backend.close()
    setting = work.setting
    advice = recommend(work.plan, findings, setting)
    return Study(
        setting.source.name,
        setting.data.name,
        work.plan,
        tuple(findings),
        advice,
        setting.data.notes,
        len(journal.results),
        f"{setting.scoring.name}, on {min(len(setting.data.test), SCORED)} test examples",
    )


def choose_backend(work: Outline, ray: str | None) -> Backend:
    if ray is not None:
        from bntool.study.ray_backend import OnRay

        return OnRay("" if ray == "local" else ray, work.workers)
    return Here() if work.setting.device != "cpu" else local(work.setting, work.workers)
