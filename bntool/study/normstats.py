"""What norms see: how many values share a statistic, and how far stored variances are from real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bntool.study.arms import ANY_NORM, OWN_BATCH_NORMS
from bntool.study.data import Part


def norm_names(model: nn.Module) -> list[str]:
    """Qualified names of all norms, our own kinds (renorm, ghost) among them by their running statistics."""
    return [
        n
        for n, m in model.named_modules()
        if isinstance(m, ANY_NORM) or getattr(m, "running_var", None) is not None
    ]


def values_per_channel(model: nn.Module, inputs: tuple[Tensor, ...], batch_size: int) -> dict[str, int]:
    """n_eff of each norm: values that one batch gives a channel, N * H * W."""
    found: dict[str, int] = {}

    def seen(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            found[name] = x.numel() // x.shape[1] // len(x) * batch_size if x.dim() > 1 else batch_size

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[n].register_forward_pre_hook(seen(n)) for n in norm_names(model)]
    run(model, inputs, hooks)
    return found


def variance_shift(model: nn.Module, part: Part) -> dict[str, float]:
    """Per batch norm: mean over channels of max(real / moving, moving / real) variance, in eval mode.

    1 is no shift. Source: Li et al. 2018, "Understanding the disharmony between dropout and batch norm".
    """
    found: dict[str, float] = {}

    def seen(name: str, moving: Tensor) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].movedim(1, -1).reshape(-1, given[0].shape[1])
            ratio = (x.var(0) + 1e-5) / (moving + 1e-5)
            found[name] = float(torch.maximum(ratio, 1.0 / ratio).mean())

        return hook

    hooks = [
        m.register_forward_pre_hook(seen(n, m.running_var))
        for n, m in model.named_modules()
        if isinstance(m, OWN_BATCH_NORMS) and m.running_var is not None
    ]
    run(model, part.inputs, hooks)
    return found


def run(model: nn.Module, inputs: tuple[Tensor, ...], hooks: list[Any]) -> None:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
