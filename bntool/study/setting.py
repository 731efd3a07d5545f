"""What every trial of a study has in common, and how one trial is run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bntool.errors import BntoolError, RunError
from bntool.sources.importing import said
from bntool.study.arms import OWN_BATCH_NORMS, has_any, make_arm
from bntool.study.cost import cost
from bntool.study.data import Data
from bntool.study.deepening import EXTRA, deepen
from bntool.study.landscape import landscape
from bntool.study.normstats import values_per_channel, variance_shift
from bntool.study.scoring import Loss, Scoring
from bntool.study.signals import signals
from bntool.study.source import ModelSource, initialise
from bntool.study.training import SCORED, train
from bntool.study.trial import COST, EXACT, LANDSCAPE, SHIFT, SIGNALS, Trial

Result = dict[str, Any]
#: examples in the batch that signals and landscapes are measured on
PROBED = 128


@dataclass(frozen=True)
class Setting:
    """The model and data of a study; sent to every worker once.

    `start_loss` is the untrained network's, for a loss of the user's own. `cost_budget_s` is for one timing.
    """

    source: ModelSource
    data: Data
    loss_fn: Loss | None = None
    device: str = "cpu"
    autocast: bool = False
    cost_budget_s: float = 4.0
    start_loss: float = 1.0

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.data.task, self.loss_fn, self.start_loss)

    def example(self, count: int = 4) -> tuple[Tensor, ...]:
        return self.data.train.first(count).inputs

    def build(self, trial: Trial) -> nn.Module:
        """The trial's network, at its start."""
        extra = dict(trial.vary).get(EXTRA, 0)
        model = self.source.fresh(trial.seed, trial.init, tuple(v for v in trial.vary if v[0] != EXTRA))
        if extra:
            initialise(deepen(model, extra, self.example()), trial.init)
        made = make_arm(model, trial.norm, self.example(), trial.dropout)
        return made.train().to(self.device)


def run_trial(setting: Setting, trial: Trial) -> Result:
    """Build, train and measure. Returns: plain JSON values; all but `wall_s` depend on the trial alone.

    Raises: RunError when the model itself fails; a network that diverges is a result.
    """
    began = time.perf_counter()
    try:
        if COST in trial.measures:
            found = cost(setting, trial)
        else:
            with deterministic():
                found = trained(setting, trial)
    except BntoolError:
        raise
    except Exception as problem:
        where = f"{setting.source.name} with norm {trial.norm}, batches of {trial.batch_size}"
        raise RunError(f"training raised {said(problem)}", where=where) from problem
    return {**found, "wall_s": time.perf_counter() - began}


class deterministic:
    """One thread, so that sums are taken in one order whatever the machine has."""

    def __enter__(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)


def trained(setting: Setting, trial: Trial) -> Result:
    model, data = setting.build(trial), setting.data
    if setting.device != "cpu":
        data = Data(data.name, data.train.to(setting.device), data.test.to(setting.device))
    watch = Watcher(setting, data, trial)
    curve = train(
        model,
        data,
        trial,
        scoring=setting.scoring,
        watch=watch,
        watch_at=watch.marks,
        autocast=setting.autocast,
    )
    chance = setting.scoring.floor(data)
    return {
        **asdict(curve),
        "chance": chance,
        **watch.found,
        **after(setting, data, trial, model, curve.diverged),
    }


class Watcher:
    """Takes the measurements that happen during training: at the start, after a quarter, at the end."""

    def __init__(self, setting: Setting, data: Data, trial: Trial) -> None:
        self.rate, self.measures = trial.rate, trial.measures
        self.loss, self.optimizer = setting.scoring.loss, trial.optimizer
        self.probe = data.train.first(PROBED)
        self.found: Result = {}
        wanted = SIGNALS in trial.measures or LANDSCAPE in trial.measures
        self.marks = tuple(sorted({0, trial.steps // 4, trial.steps})) if wanted else ()

    def __call__(self, model: nn.Module, step: int) -> None:
        if SIGNALS in self.measures:
            rows = [s.to_dict() for s in signals(model, self.probe, self.loss)]
            self.found.setdefault(SIGNALS, []).append({"step": step, "layers": rows})
        if LANDSCAPE in self.measures:
            seen = landscape(model, self.probe, self.loss, self.rate, self.optimizer)
            self.found.setdefault(LANDSCAPE, []).append({"step": step, **seen})


def after(setting: Setting, data: Data, trial: Trial, model: nn.Module, diverged: bool) -> Result:
    """Measurements on the trained network."""
    found: Result = {}
    if EXACT in trial.measures:
        found["n_eff"] = values_per_channel(model, data.train.first(2).inputs, trial.batch_size)
    if EXACT in trial.measures and not diverged and has_any(model, OWN_BATCH_NORMS):
        found["exact_score"] = with_exact_statistics(setting, data, model)
    if SHIFT in trial.measures and not diverged:
        found["variance_shift"] = variance_shift(model, data.train.first(1024))
    return found


def with_exact_statistics(setting: Setting, data: Data, model: nn.Module) -> float:
    """Score with running statistics replaced by those of the whole training part."""
    from bntool.calibrate import calibrate

    whole = data.train.first(2048)
    exact = calibrate(model, [tuple(x[i : i + 256] for x in whole.inputs) for i in range(0, len(whole), 256)])
    return setting.scoring(exact.model, data.test.first(SCORED))
