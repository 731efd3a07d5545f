"""Modules that take the place of one layer and run more than it did: a norm, an activation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class StandIn(nn.Sequential):
    """Children run in order; the one named `_inner` is the layer whose place this took.

    Attributes the layer had are still read through this module, and checkpoints with the layer's old keys
    still load: `conv.weight` finds its way to `conv.layer.weight`.
    """

    _inner = "layer"

    @property
    def inner(self) -> nn.Module:
        return self._modules[self._inner]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get(self._inner)
            if inner is None or name.startswith("__"):  # how it is copied is not for the layer to say
                raise
            return getattr(inner, name)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any
    ) -> None:
        if self._adopt(state_dict, prefix):
            self._complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    def _adopt(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Rename the old keys of the layer; whether there were any."""
        old = [
            key
            for key in state_dict
            if key.startswith(prefix) and key[len(prefix) :].split(".")[0] not in self._modules
        ]
        for key in old:
            state_dict[f"{prefix}{self._inner}.{key[len(prefix) :]}"] = state_dict.pop(key)
        return bool(old)

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Add what a checkpoint from before this module cannot have."""


class Normed(StandIn):
    """A layer and the norm that was put behind it, or ahead of it."""

    _inner = "layer"

    def __init__(self, layer: nn.Module, norm: nn.Module, *, ahead: bool = False) -> None:
        parts = {"norm": norm, "layer": layer} if ahead else {"layer": layer, "norm": norm}
        super().__init__(OrderedDict(parts))
        self.train(layer.training)

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """A checkpoint without the norm gets one that changes nothing: it computes what it computed."""
        norm, layer = self._modules["norm"], self._modules["layer"]
        assert norm is not None
        assert layer is not None
        if any(key.startswith(f"{prefix}norm.") for key in state_dict):
            return
        dropped = getattr(layer, "bias", None) is None
        bias = state_dict.pop(f"{prefix}layer.bias", None) if dropped else None
        for name, value in unchanging(norm, bias).items():
            state_dict[f"{prefix}norm.{name}"] = value


class NormAct(StandIn):
    """A norm and what its class did besides: the dropout and activation of timm's `BatchNormAct2d`."""

    _inner = "norm"

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, drop=drop, act=act))


@torch.no_grad()
def unchanging(norm: nn.Module, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The state of `norm` with which it adds `bias` and is otherwise the identity, at its present statistics.

    weight = sqrt(var + eps), bias = mean; the bias dropped from the layer is in the mean: mean - bias.
    A norm without running statistics keeps its state.
    """
    state = dict(norm.state_dict())
    mean, var = state.get("running_mean"), state.get("running_var")
    if mean is None or var is None or "weight" not in state:
        return state
    state["weight"] = torch.sqrt(var.double() + norm.eps).to(var.dtype)
    if bias is not None:
        state["bias"] = mean.double().add(bias.double()).to(mean.dtype)
    else:
        state["bias"] = mean.clone()
    return state
