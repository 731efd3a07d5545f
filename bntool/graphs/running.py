"""Running a module as anybody would, but for what torch.fx prints when a graph of its making raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn


def outputs_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`model(*args, **kwargs)`; a graph's own `__call__` would write a traceback to stderr and raise."""
    wrapped = getattr(model, "_wrapped_call", None) if isinstance(model, fx.GraphModule) else None
    if wrapped is not None and wrapped.cls_call is None:
        return nn.Module.__call__(model, *args, **kwargs)
    return model(*args, **kwargs)
