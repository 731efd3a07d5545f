"""The state with which a norm that was just put in changes nothing: from the moments of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bntool.errors import RunError
from bntool.norms.moments import Moments, moments
from bntool.norms.submodules import state_kept
from bntool.pooling.batches import Call
from bntool.pooling.rounds import ONE_VALUE
from bntool.progress import Progress, silent

RANDOM_SAMPLES = 32
"""Samples of random inputs that stand in for data, at least."""


def observe(
    model: nn.Module,
    work: Sequence[Call],
    places: dict[str, tuple[nn.Module, bool, int]],
    progress: Progress = silent,
) -> dict[str, Moments]:
    """The pooled moments at every place, from one eval pass over `work`.

    A place is a module, whether its input counts (else its output), and the dimension of the channels.
    Raises: RunError naming place and batch on NaN or inf.
    """
    found: dict[str, Moments] = {}
    with state_kept(model), torch.no_grad(), ExitStack() as stack:
        model.eval()
        batch = [0]
        for name, (module, ahead, dim) in places.items():
            stack.callback(_hooked(module, ahead, _pooling(found, name, dim, batch)).remove)
        for batch[0], call in enumerate(work):
            call.run(model)
            progress("observe", batch[0] + 1, len(work))
    for name, seen in found.items():
        if seen.count < 2:
            raise RunError("one value per channel in all the data", where=name, next=ONE_VALUE)
    return found


def _hooked(module: nn.Module, ahead: bool, read: Callable[[Tensor], None]) -> Any:
    if ahead:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: read(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: read(output))


def _pooling(found: dict[str, Moments], name: str, dim: int, batch: list[int]) -> Callable[[Tensor], None]:
    def read(value: Tensor) -> None:
        new = moments(value, dim)
        if not new.finite:
            raise RunError(
                f"batch {batch[0]} gives NaN or inf here",
                where=name,
                next="Take it out, or look at the weights.",
            )
        found[name] = found[name].merge(new) if name in found else new

    return read


@torch.no_grad()
def set_unchanging(norm: nn.Module, seen: Moments, bias: Tensor | None, batches: int) -> int:
    """weight = sqrt(var + eps), bias = mean, running statistics = mean and var: the norm is the identity.

    `bias` is what was dropped from the layer before it: running_mean = mean - bias puts it back. A channel
    that never varies gets var = 0, weight = sqrt(eps). Returns: how many such dead channels there are.
    """
    var = seen.variance()
    dead = var <= (1e-6 * seen.mean).square() + 1e-14
    var = torch.where(dead, torch.zeros_like(var), var)
    inner: Any = next(m for m in norm.modules() if hasattr(m, "running_mean"))
    shift = 0.0 if bias is None else bias.double()
    inner.running_mean.copy_(seen.mean - shift)
    inner.running_var.copy_(var)
    stored = inner.running_var.double()
    inner.weight.copy_(torch.sqrt(stored + inner.eps))
    inner.bias.copy_(seen.mean)
    if isinstance(counter := getattr(inner, "num_batches_tracked", None), Tensor):
        counter.fill_(batches)
    return int(dead.sum())


@torch.no_grad()
def set_similar(norm: nn.Module, seen: Moments) -> None:
    """weight = std and bias = mean of what the norm reads: the same range of values, not the same values."""
    inner = next((m for m in norm.modules() if getattr(m, "weight", None) is not None), norm)
    for name, value in (("weight", seen.variance().sqrt()), ("bias", seen.mean)):
        if isinstance(parameter := getattr(inner, name, None), Tensor):
            parameter.copy_(value)


def random_calls(example: Call, *, seed: int = 0) -> list[Call]:
    """The example and as many random inputs like it as make 32 samples: normal with its mean and spread.

    Integers are drawn from the example's own values.
    """
    generator = torch.Generator().manual_seed(seed)
    more = max(0, -(-RANDOM_SAMPLES // example.size) - 1)
    return [example, *(_like(example, generator) for _ in range(min(more, RANDOM_SAMPLES - 1)))]


def _like(example: Call, generator: torch.Generator) -> Call:
    return example.changed(lambda value: _drawn(value, generator))


def _drawn(value: Tensor, generator: torch.Generator) -> Tensor:
    if value.numel() < 2:
        return value
    if not value.is_floating_point():
        index = torch.randint(value.numel(), tuple(value.shape), generator=generator)
        return value.flatten()[index.to(value.device)]
    noise = torch.randn(tuple(value.shape), generator=generator, dtype=torch.float64).to(value.device)
    wide = value.double()
    return (wide.mean() + wide.std() * noise).to(value.dtype)
