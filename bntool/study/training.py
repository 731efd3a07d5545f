"""Train one network, the same way for every arm: plain SGD, batches drawn from the seed alone.

A network that diverges is a result: training stops, `diverged` is true, its score is chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bntool.study.data import REGRESSION, Data, Part, class_sorted
from bntool.study.fitting import readout
from bntool.study.trial import Trial

Loss = Callable[[Any, Tensor], Tensor]
#: a loss above this many times its start has left for good
BLOWN_UP = 1e6
#: examples that scores along the way are taken on; the last score uses all
EVALUATED = 512


@dataclass
class Curve:
    """What training went through: scores at `steps`, the loss averaged since the previous one.

    Units: `score` is accuracy (0..1), R2 for regression, minus the loss for a loss of the user's own.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    train_score: float = math.nan
    test_score: float = math.nan
    diverged: bool = False


def loss_for(task: str, loss_fn: Loss | None) -> Loss:
    """Cross entropy or mean squared error on the model's readout, or the user's own on its raw output."""
    if loss_fn is not None:
        return loss_fn
    if task == REGRESSION:
        return lambda output, target: nn.functional.mse_loss(readout(output), target)
    return lambda output, target: nn.functional.cross_entropy(readout(output), target)


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


@torch.no_grad()
def score(model: nn.Module, part: Part, task: str, loss_fn: Loss | None = None) -> float:
    """Accuracy, R2, or minus the user's own loss, in eval mode; NaN when an output is not finite."""
    training = model.training
    model.eval()
    outputs = [model(*chunk.inputs) for chunk in chunks(part)]
    model.train(training)
    if loss_fn is not None:
        weights = [len(c) for c in chunks(part)]
        losses = [float(loss_fn(o, c.targets)) for o, c in zip(outputs, chunks(part), strict=True)]
        return -sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
    values = torch.cat([readout(o).float() for o in outputs])
    if not values.isfinite().all():
        return math.nan
    if task == REGRESSION:
        residual = (values - part.targets).square().sum()
        return float(1.0 - residual / (part.targets - part.targets.mean(0)).square().sum())
    return float((values.argmax(1) == part.targets).float().mean())


def chunks(part: Part, size: int = 512) -> Iterator[Part]:
    for start in range(0, len(part), size):
        yield Part(tuple(x[start : start + size] for x in part.inputs), part.targets[start : start + size])


Watch = Callable[[nn.Module, int], None]


def train(
    model: nn.Module,
    data: Data,
    trial: Trial,
    *,
    loss_fn: Loss | None = None,
    watch: Watch | None = None,
    watch_at: tuple[int, ...] = (),
    autocast: bool = False,
) -> Curve:
    """Train `model` in place as `trial` says. `watch` is called before step `s` for every s in `watch_at`."""
    part = data.train.first(trial.examples) if trial.examples else data.train
    probe = data.test.first(EVALUATED)
    loss_of, curve = loss_for(data.task, loss_fn), Curve()
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.rate)
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
            value = score(model, probe, data.task, loss_fn)
            record(curve, step, pending, value if math.isfinite(value) else data.chance)
            pending = []
    if watch is not None and trial.steps in watch_at and not curve.diverged:
        watch(model, trial.steps)
    finish(curve, model, part, data, loss_fn)
    return curve


def record(curve: Curve, step: int, losses: list[float], value: float) -> None:
    curve.steps.append(step)
    curve.loss.append(sum(losses) / len(losses))
    curve.score.append(value)


def finish(curve: Curve, model: nn.Module, part: Part, data: Data, loss_fn: Loss | None) -> None:
    """Take the last scores; a network with outputs that are not finite has diverged too."""
    if not curve.diverged:
        curve.test_score = score(model, data.test, data.task, loss_fn)
        curve.train_score = score(model, part, data.task, loss_fn)
        curve.diverged = not (math.isfinite(curve.test_score) and math.isfinite(curve.train_score))
    if curve.diverged:
        worst = min([v for v in curve.score if math.isfinite(v)], default=-math.log(1e3)) if loss_fn else None
        curve.test_score = curve.train_score = data.chance if worst is None else worst
