"""Gradients and activations layer by layer, for one batch in train mode: what depth does to the signal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bntool.study.data import Part
from bntool.study.scoring import Loss
from bntool.study.source import WEIGHTED

#: rows used for the effective rank: its cost grows with their square
RANK_ROWS = 512


@dataclass(frozen=True)
class LayerSignal:
    """One call of a convolution or linear.

    `gradient`: norm of the loss's gradient by the layer's output. Of the layer's input: `deviation` (of its
    values), `dead` (share of features that are 0 for every example) and `rank` (effective rank over the
    number of features or rows, whichever is less; 0..1).
    """

    name: str
    gradient: float
    deviation: float
    dead: float
    rank: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def signals(model: nn.Module, part: Part, loss_of: Loss) -> list[LayerSignal]:
    """Signals of every call of a layer with weights, in order of execution; the model's state is left as
    is.
    """
    rows: list[dict[str, Any]] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            hooks.append(module.register_forward_hook(_watch(name, rows)))
    kept = {k: v.clone() for k, v in model.named_buffers()}
    try:
        loss_of(model(*part.inputs), part.targets).backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
        restore(model, kept)
    return [LayerSignal(**row) for row in rows]


def restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Put buffers (running statistics) back as they were."""
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])


def _watch(name: str, rows: list[dict[str, Any]]) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        row: dict[str, Any] = {"name": name, "gradient": 0.0, **of_values(inputs[0].detach())}
        rows.append(row)
        # a hook set now sees the gradient of this value even if a later layer overwrites it in place
        output.register_hook(lambda g: row.update(gradient=float(g.norm())))

    return hook


def of_values(x: Tensor) -> dict[str, float]:
    features = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.dim() > 2 else x.reshape(len(x), -1)
    return {
        "deviation": float(x.std()),
        "dead": float((features == 0).all(0).float().mean()),
        "rank": effective_rank(features[:RANK_ROWS].float()),
    }


def effective_rank(rows: Tensor) -> float:
    """exp(entropy of the normalised singular values) over the largest rank possible. 0..1.

    Source: Roy & Vetterli 2007, "The effective rank".
    """
    values = torch.linalg.svdvals(rows)
    total = float(values.sum())
    if not math.isfinite(total) or total <= 0.0:
        return 0.0
    share = (values / total).clamp_min(1e-12)
    return float((-(share * share.log()).sum()).exp()) / min(rows.shape)


def factors(gradients: list[float]) -> list[float]:
    """Gradient at a layer over the gradient at the next one: above 1 it grows on its way down to the
    input.
    """
    pairs = pairwise(gradients)
    return [low / high for low, high in pairs if high > 0.0 and math.isfinite(low / high)]


def hidden(rows: list[dict[str, Any]]) -> list[float]:
    """Gradient norms of all layers but the last, whose gradient depends on the loss alone."""
    return [r["gradient"] for r in rows[:-1]]


def median(values: list[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def factor_per_layer(rows: list[dict[str, Any]]) -> float:
    """The typical layer's factor: the median, so that the first layer (the data's scale) does not set it."""
    return median(factors(hidden(rows)))


def decades(rows: list[dict[str, Any]]) -> float:
    """|log10(gradient at the bottom / gradient at the top)|: 0 is level, 3 is a factor of a thousand."""
    gradients = hidden(rows)
    if len(gradients) < 2 or gradients[0] <= 0.0 or gradients[-1] <= 0.0:
        return 12.0 if gradients and min(gradients) <= 0.0 else 0.0
    return min(abs(math.log10(gradients[0] / gradients[-1])), 12.0)
