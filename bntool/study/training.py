"""Train one network, the same way for every arm: one optimizer, batches drawn from the seed alone.

A network that diverges is a result: training stops, `diverged` is true, its score is chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bntool.study.data import Data, Part, class_sorted
from bntool.study.scoring import Scoring
from bntool.study.trial import Trial

#: a loss above this many times its start has left for good
BLOWN_UP = 1e6
#: examples that scores along the way are taken on, and the last score on training examples
EVALUATED = 512
#: examples that the last test score is taken on
SCORED = 2048
MOMENTUM = 0.9


@dataclass
class Curve:
    """What training went through: the loss at `steps`, averaged since the one before; scores there of a trial
    that is followed.

    Units: `score` as in `Scoring`, 1 at best.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    train_score: float = math.nan
    test_score: float = math.nan
    diverged: bool = False


def batches(part: Part, size: int, seed: int, order: str) -> Iterator[Tensor]:
    """Row numbers of endless batches. Every arm with this seed sees the same ones.

    `sorted`: rows sorted by class and cut into batches, which come in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(part))
    ranked = class_sorted(part.targets).cpu()
    while True:
        if order == "sorted":
            cuts = [c for c in torch.split(ranked, size) if len(c) == size]
            yield from (cuts[i] for i in torch.randperm(len(cuts), generator=generator).tolist())
        else:
            shuffled = torch.randperm(len(part), generator=generator)
            yield from (c for c in torch.split(shuffled, size) if len(c) == size)


def evaluation_steps(steps: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 8, ... each about a fifth more than the last: equal steps on the scale of ratios."""
    marks, mark = [], 1.0
    while mark < steps:
        marks.append(round(mark))
        mark = max(mark + 1.0, mark * 2.0 ** (1 / 4))
    return [*dict.fromkeys(marks), steps] if steps else []


Watch = Callable[[nn.Module, int], None]


def train(
    model: nn.Module,
    data: Data,
    trial: Trial,
    *,
    scoring: Scoring,
    watch: Watch | None = None,
    watch_at: tuple[int, ...] = (),
    autocast: bool = False,
) -> Curve:
    """Train `model` in place as `trial` says. `watch` is called before step `s` for every s in `watch_at`."""
    part = data.train.first(trial.examples) if trial.examples else data.train
    probe = data.test.first(EVALUATED)
    loss_of, curve = scoring.loss, Curve()
    optimizer = optimizer_of(model, trial)
    marks, pending = set(evaluation_steps(trial.steps)), []
    torch.manual_seed(trial.seed)
    model.train()
    rows = batches(part, trial.batch_size, trial.seed, trial.order)
    for step in range(1, trial.steps + 1):
        if watch is not None and step - 1 in watch_at:
            watch(model, step - 1)
        batch = part.rows(next(rows))
        with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=autocast):
            loss = loss_of(model(*batch.inputs), batch.targets)
        value = float(loss.detach())
        if not math.isfinite(value) or value > BLOWN_UP:
            curve.diverged = True
            break
        pending.append(value)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step in marks:
            curve.steps.append(step)
            curve.loss.append(sum(pending) / len(pending))
            pending = []
            if trial.followed:
                value = scoring(model, probe)
                curve.score.append(value if math.isfinite(value) else scoring.floor(data))
    if watch is not None and trial.steps in watch_at and not curve.diverged:
        watch(model, trial.steps)
    finish(curve, model, part, data, scoring)
    return curve


def optimizer_of(model: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    """Plain SGD, SGD with momentum .9, or Adam: no weight decay, a constant rate."""
    if trial.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=trial.rate)
    momentum = MOMENTUM if trial.optimizer == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=trial.rate, momentum=momentum)


def finish(curve: Curve, model: nn.Module, part: Part, data: Data, scoring: Scoring) -> None:
    """Take the last scores; a network with outputs that are not finite has diverged too."""
    if not curve.diverged:
        curve.test_score = scoring(model, data.test.first(SCORED))
        curve.train_score = scoring(model, part.first(EVALUATED))
        curve.diverged = not (math.isfinite(curve.test_score) and math.isfinite(curve.train_score))
    if curve.diverged:
        curve.test_score = curve.train_score = scoring.floor(data)
