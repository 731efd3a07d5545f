"""Random norm statistics: the defaults (mean 0, variance 1) would hide most wrong folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor) and isinstance(
        getattr(module, "running_var", None), Tensor
    )


def scramble(norm: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Random statistics around those of `x`, so that activations neither explode nor die.

    Each channel's variance is up to twice off; a seventh of the gammas is negative.
    """
    channels = x.transpose(0, 1).flatten(1).double()
    spread = channels.var(1, unbiased=False).mean().sqrt() if channels.shape[1] > 1 else channels.std()
    spread = torch.nan_to_num(spread, 1.0).clamp_min(1e-3)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(channels), generator=generator, dtype=torch.double)

    def write(name: str, value: Tensor) -> None:
        target = getattr(norm, name, None)
        if isinstance(target, Tensor):
            target.data.copy_(value)

    write("running_mean", channels.mean(1) + spread * uniform(-0.5, 0.5))
    write("running_var", spread**2 * uniform(0.5, 2.0))
    sign = torch.where(uniform(0, 1) < 1 / 7, -1.0, 1.0)
    write("weight", sign * uniform(0.5, 1.5))
    write("bias", uniform(-0.5, 0.5))


def randomise_norms(model: nn.Module, inputs: Sequence[Any], seed: int = 0) -> nn.Module:
    """Gives every norm of `model` random statistics in one pass over `inputs`; in place."""
    generator = torch.Generator().manual_seed(seed)
    seen: set[nn.Module] = set()

    def hook_for(norm: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if norm not in seen:
                seen.add(norm)
                scramble(norm, args[0] if args else next(iter(kwargs.values())), generator)

        return hook

    norms = [m for m in model.modules() if has_statistics(m)]
    handles = [m.register_forward_pre_hook(hook_for(m), with_kwargs=True) for m in norms]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return model
