"""Steps of torch.fx's tracing, in a fraction of the time that it takes them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn

#: arguments of these types stand in a graph as they are
LITERALS = frozenset((int, float, bool, str, complex, type(None), type(...), torch.dtype, torch.device))
#: attributes of these types are none that a graph reads
NO_TENSORS = LITERALS | {dict, OrderedDict, list, tuple, set}


def tensor_attributes(modules: dict[str, nn.Module]) -> dict[Any, str]:
    """The paths of tensors, and other objects of torch's, that are plain attributes of modules."""
    held = [
        (path, name, value)
        for path, module in modules.items()
        for name, value in module.__dict__.items()
        if type(value) not in NO_TENSORS
    ]
    found = [h for h in held if isinstance(h[2], torch.Tensor | torch.ScriptObject)]
    return {value: f"{path}.{name}" if path else name for path, name, value in found}


def set_arguments(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a call without any is given. (A graph that makes it with them looks through all for symbolic
    sizes, and a node that is assigned to is looked up anew: half of the time of making it.)
    """
    fx.Node.args.fset(node, args)  # type: ignore[attr-defined]
    if kwargs:
        fx.Node.kwargs.fset(node, kwargs)  # type: ignore[attr-defined]
