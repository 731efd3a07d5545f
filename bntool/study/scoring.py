"""How good a network is: one number, taken the same way for every arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bntool.study.data import REGRESSION, Data, Part
from bntool.study.fitting import readout

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Scoring:
    """Accuracy; R2 for regression; for a loss of the user's own the share of `start_loss` that is gone.

    All are 1 at best, so that one size of difference counts for all of them. `start_loss` is the loss of an
    untrained network on the test part.
    """

    task: str
    loss_fn: Loss | None = None
    start_loss: float = 1.0

    @property
    def name(self) -> str:
        if self.loss_fn is not None:
            return "share of an untrained network's loss that training takes away"
        return "R2 (share of the variance explained)" if self.task == REGRESSION else "accuracy"

    @property
    def loss(self) -> Loss:
        """What is trained on: cross entropy or mean squared error of the readout, or the user's own."""
        if self.loss_fn is not None:
            return self.loss_fn
        if self.task == REGRESSION:
            return lambda output, target: nn.functional.mse_loss(readout(output), target)
        return lambda output, target: nn.functional.cross_entropy(readout(output), target)

    def floor(self, data: Data) -> float:
        """The score of knowing nothing, which networks that diverge get as well."""
        return 0.0 if self.loss_fn is not None else data.chance

    @torch.no_grad()
    def __call__(self, model: nn.Module, part: Part) -> float:
        """The score in eval mode, 0 at least; NaN when an output is not finite."""
        training = model.training
        model.eval()
        outputs = [model(*chunk.inputs) for chunk in chunks(part)]
        model.train(training)
        return self.of_loss(outputs, part) if self.loss_fn is not None else self.of_outputs(outputs, part)

    def of_outputs(self, outputs: list[Any], part: Part) -> float:
        values = torch.cat([readout(o).float() for o in outputs])
        if not values.isfinite().all():
            return math.nan
        if self.task == REGRESSION:
            residual = (values - part.targets).square().sum()
            whole = (part.targets - part.targets.mean(0)).square().sum()
            return max(0.0, float(1.0 - residual / whole))
        return float((values.argmax(1) == part.targets).float().mean())

    def of_loss(self, outputs: list[Any], part: Part) -> float:
        scale = self.start_loss if self.start_loss > 0.0 else 1.0
        found = (self.start_loss - self.mean_loss(outputs, part)) / scale
        return max(0.0, found) if math.isfinite(found) else math.nan

    def mean_loss(self, outputs: list[Any], part: Part) -> float:
        pairs = zip(outputs, chunks(part), strict=True)
        return sum(len(c) * float(self.loss(o, c.targets)) for o, c in pairs) / len(part)


@torch.no_grad()
def start_loss(model: nn.Module, part: Part, loss_fn: Loss) -> float:
    """The user's own loss before any training, in eval mode."""
    model.eval()
    outputs = [model(*chunk.inputs) for chunk in chunks(part)]
    return Scoring(REGRESSION, loss_fn).mean_loss(outputs, part)


def chunks(part: Part, size: int = 512) -> Iterator[Part]:
    for start in range(0, len(part), size):
        yield Part(tuple(x[start : start + size] for x in part.inputs), part.targets[start : start + size])
