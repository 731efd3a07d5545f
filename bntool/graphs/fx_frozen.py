"""Frozen batch norms: plain modules with a norm's buffers, as detection libraries write them.

They are no subclass of torch's norms and each library has its own, so one is recognised by what it holds and
by what it does: on random values it must compute the norm's map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BUFFERS = ("weight", "bias", "running_mean", "running_var")


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module called Frozen... computes `weight * (x - mean) / sqrt(var + eps) + bias`."""
    if not type(module).__name__.startswith("Frozen") or not module._buffers.keys() >= set(BUFFERS):
        return False
    weight, bias, mean, var = (module._buffers[name] for name in BUFFERS)
    sizes = {None if t is None else tuple(t.shape) for t in (weight, bias, mean, var)}
    if len(sizes) != 1 or None in sizes or not isinstance(getattr(module, "eps", None), float):
        return False
    return _computes_it(module, *(t for t in (weight, bias, mean, var) if t is not None))


def _computes_it(module: nn.Module, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> bool:
    if weight.is_meta or not weight.is_floating_point():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(weight), 3, 2, generator=generator).to(weight)
    try:
        with torch.no_grad():
            want = nn.functional.batch_norm(x, mean, var, weight, bias, eps=float(module.eps))  # type: ignore[arg-type]
            got = module.forward(x)
    except Exception:
        return False
    scale = want.abs().max().clamp_min(1)
    return got.shape == want.shape and bool((got - want).abs().max() <= 64 * torch.finfo(x.dtype).eps * scale)
