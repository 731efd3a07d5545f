"""The loss along its own gradient: how far it can be trusted.

Source: Santurkar et al. 2018, "How does batch normalization help optimization?", figure 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bntool.study.data import Part
from bntool.study.scoring import Loss
from bntool.study.signals import restore

#: lengths of the step, as multiples of the learning rate
LENGTHS = (0.5, 1.0, 2.0, 4.0)
#: stands for a loss or gradient that is not finite: worse than any other, and finite
WORST = 1e6


def landscape(
    model: nn.Module, part: Part, loss_of: Loss, rate: float, optimizer: str = "sgd"
) -> dict[str, float]:
    """`loss_range` and `gradient_change` over steps of 0.5 to 4 rates along the gradient of this batch.

    For Adam along the gradient's sign, which is its first step. `gradient_change` is the largest L2 distance
    between the gradient here and along the step. Weights and running statistics are left as they were.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    start = [w.detach().clone() for w in weights]
    here, origin = loss_and_gradient(model, part, loss_of, weights)
    direction = [g.sign() for g in origin] if optimizer == "adam" else origin
    losses, changes = [here], [0.0]
    try:
        for length in LENGTHS:
            move(weights, start, direction, -rate * length)
            loss, gradient = loss_and_gradient(model, part, loss_of, weights)
            losses.append(loss)
            changes.append(distance(gradient, origin))
    finally:
        move(weights, start, direction, 0.0)
        restore(model, buffers)
    return {"loss_range": capped(max(losses) - min(losses)), "gradient_change": capped(max(changes))}


def capped(value: float) -> float:
    return min(value, WORST) if math.isfinite(value) else WORST


def loss_and_gradient(
    model: nn.Module, part: Part, loss_of: Loss, weights: list[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    loss = loss_of(model(*part.inputs), part.targets)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    gradient = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
    return capped(float(loss.detach())), gradient


@torch.no_grad()
def move(weights: list[nn.Parameter], start: list[Tensor], direction: list[Tensor], length: float) -> None:
    for weight, origin, along in zip(weights, start, direction, strict=True):
        weight.copy_(origin + length * along if length else origin)


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    return math.sqrt(sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True)))
