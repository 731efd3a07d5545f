"""Modules as data: `{"type": "torch.nn.BatchNorm2d", "args": {"num_features": 8}}` and what it builds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn


def build(spec: Mapping[str, Any], *, like: nn.Module) -> nn.Module:
    """The module that `spec` describes: a class of torch.nn or of bntool with literal arguments.

    It gets the mode, device and floating dtype of `like`, where that has any.
    """
    place, _, name = str(spec["type"]).rpartition(".")
    if place != "torch.nn" and place.split(".")[0] != "bntool":
        raise ValueError(f"{spec['type']} is neither of torch.nn nor of bntool")
    kind = getattr(import_module(place), name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"{spec['type']} is not a module")
    args = {k: build(v, like=like) if _is_spec(v) else v for k, v in spec.get("args", {}).items()}
    made = kind(**args).train(like.training)
    tensor = first_tensor(like)
    return made if tensor is None else made.to(device=tensor.device, dtype=tensor.dtype)


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" in value


def first_tensor(module: nn.Module) -> Tensor | None:
    """The first floating parameter or buffer."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)


def put(model: nn.Module, path: str, new: nn.Module) -> None:
    """Set the submodule at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
