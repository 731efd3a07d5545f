"""Norms whose class has a forward of its own: is what they normalise what they are given?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bntool.graphs.fx_baked import has_own_forward
from bntool.norms.submodules import state_kept
from bntool.pooling.batches import Call

FUNCTIONS = (nn.functional.batch_norm, torch.batch_norm)


class Normalised(TorchFunctionMode):
    """Notes the norms, by the names of their running means, that normalise another value than their input."""

    def __init__(self, norms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = {id(norm.running_mean): name for name, norm in norms.items()}
        self.given: dict[str, Tensor] = {}
        self.others: dict[str, None] = {}

    def looks_at(self, name: str) -> Any:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.given[name] = args[0] if args else next(iter(kwargs.values()))

        return look

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in FUNCTIONS:
            tensors = (*args, *kwargs.values())
            found = next((self.names[id(t)] for t in tensors if id(t) in self.names), None)
            value = args[0] if args else kwargs["input"]
            if found in self.given and not _same(self.given[found], value):
                self.others[found] = None
        return function(*args, **kwargs)


def _same(given: Tensor, value: Tensor) -> bool:
    """(In another dtype it is the same.)"""
    return given.shape == value.shape and torch.equal(given.to(value.dtype), value)


def normalise_others(model: nn.Module, norms: Mapping[str, nn.Module], call: Call) -> list[str]:
    """Names of the norms whose own forward makes something else of their input before normalising it."""
    own = {name: norm for name, norm in norms.items() if _own(norm)}
    if not own:
        return []
    mode = Normalised(own)
    handles = [m.register_forward_pre_hook(mode.looks_at(n), with_kwargs=True) for n, m in own.items()]
    try:
        with state_kept(model), torch.no_grad(), mode:
            call.run(model.eval())
    finally:
        for handle in handles:
            handle.remove()
    return list(mode.others)


def _own(norm: nn.Module) -> bool:
    home = type(norm).forward.__module__
    return has_own_forward(norm) or not home.startswith(("torch.nn.", "bntool."))
