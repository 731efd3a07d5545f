"""How much memory a forward pass wants, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bntool.pooling.batches import device_of

HELD = 4
"""Values alive at once in units of the largest one: an op's input and output, a shortcut, a scratch copy."""


def with_peak_bytes(model: nn.Module, forward: Callable[[], Any]) -> tuple[int, Any]:
    """An estimate of what one forward pass of `model` holds at its peak, parameters apart; what it gives."""
    largest = 0

    def measure(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    leaves = [m for m in model.modules() if not m._modules]
    handles = [m.register_forward_hook(measure) for m in leaves]
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return HELD * largest, result


def free_bytes(model: nn.Module) -> int:
    """What is free on the model's device."""
    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def available_bytes() -> int:
    """Main memory that can be had without swapping; 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
