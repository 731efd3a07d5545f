"""What the schema of an ATen operator says of a call: its name, its arguments, what it writes into."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

Args = tuple[Any, ...]


def aten_name(node: fx.Node) -> str:
    """`conv2d` of `aten.conv2d.default`; empty for anything else."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    space, _, name = node.target._schema.name.partition("::")
    return name if space == "aten" else ""


def all_arguments(node: fx.Node) -> Args:
    """The positional arguments: those given by name in their place, those left out as their defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values = list(node.args)
    for argument in node.target._schema.arguments[len(values) :]:
        if argument.kwarg_only:
            break
        values.append(node.kwargs.get(argument.name, argument.default_value))
    return tuple(values)


def argument(node: fx.Node, name: str) -> Any:
    """The argument of this name in the operator's schema, None where it has none or was left out."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for place, declared in enumerate(node.target._schema.arguments):
        if declared.name == name:
            return (
                node.args[place] if place < len(node.args) else node.kwargs.get(name, declared.default_value)
            )
    return None


def written(node: fx.Node) -> list[str]:
    """The arguments that the operator changes, by name."""
    assert isinstance(node.target, torch._ops.OpOverload)
    declared = node.target._schema.arguments
    return [a.name for a in declared if a.alias_info is not None and a.alias_info.is_write]
