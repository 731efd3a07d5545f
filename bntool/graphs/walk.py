"""Every module of a model with its name."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

#: types of attributes that hold other values
CONTAINERS = frozenset((dict, OrderedDict, list, set))
#: attributes in which a module holds others, parameters and buffers
MEMBERS = ("_modules", "_parameters", "_buffers")


def modules_in(model: nn.Module, *, every_name: bool = False) -> list[tuple[str, nn.Module]]:
    """What `named_modules` gives, in a fraction of the time: that goes through a generator for each level."""
    found, seen = [("", model)], {model}

    def walk(prefix: str, parts: dict[str, nn.Module | None]) -> None:
        for name, part in parts.items():
            if part is None or part in seen:
                continue
            if not every_name:
                seen.add(part)
            found.append((prefix + name, part))
            if part._modules:
                walk(f"{prefix}{name}.", part._modules)

    walk("", model._modules)
    return found
