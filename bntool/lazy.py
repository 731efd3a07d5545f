"""Modules whose parameters get their sizes from the first input (torch's Lazy ones)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bntool.errors import UsageError


def has_lazy_parts(model: nn.Module) -> bool:
    return bool(unsized(model))


def unsized(model: nn.Module) -> list[Any]:
    """The parameters and buffers that have no size yet."""
    tensors = (t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()))
    return [t for t in tensors if t is not None and is_lazy(t)]


def stand_ins(model: nn.Module) -> dict[int, Any]:
    """New ones for them, by id: torch cannot copy them."""
    return {id(t): type(t)(device=t.device, dtype=t.dtype) for t in unsized(model)}


def run_once(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None) -> None:
    """Let the modules take their sizes from the example inputs, in place.

    Raises: UsageError without inputs.
    """
    if inputs is None:
        raise UsageError(
            "the model has lazy modules, whose sizes come from the first input", next="Give example inputs."
        )
    with torch.no_grad():
        model(*inputs[0], **inputs[1])
