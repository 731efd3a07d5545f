"""`isinstance` on traced values, answered for what they stand for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import _named_member_accessor

from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.fx_values import Attribute, Value


def _isinstance(value: Any, kinds: Any) -> bool:
    if isinstance(value, kinds):
        return True
    return type(value) in (Value, Attribute) and issubclass(_kind(value), kinds)


@contextlib.contextmanager
def told_apart(classes: Iterable[type], told: set[nn.Module]) -> Iterator[None]:
    """Code that asks whether a traced value is a tensor, a size or a number is told what it stands for.

    That is `torch.is_tensor`, `torch.func.functional_call`, and `isinstance` in the packages in which
    `classes` are defined. (It would go for all code with a `__class__`, but torch's C++ would take it for a
    tensor, or with another builtin, but torch.compile would not know that.) Modules of which more is `told`
    than of an nn.Identity are noted.
    """

    def answer(value: Any, kinds: Any) -> bool:
        found = _isinstance(value, kinds)
        if isinstance(value, nn.Module) and found != issubclass(nn.Identity, kinds):
            told.add(value)
        return found

    own = {base.__module__.partition(".")[0] for cls in classes for base in cls.__mro__}
    packages = own - {"torch", "builtins", "bntool"}
    near = [(name, m) for name, m in list(sys.modules.items()) if name.startswith(tuple(packages))]
    found = [m for name, m in near if name.partition(".")[0] in packages]
    spaces = [vars(m) for m in (torch, _named_member_accessor, *found) if "isinstance" not in vars(m)]
    for space in spaces:
        space["isinstance"] = answer
    try:
        yield
    finally:
        for space in spaces:
            del space["isinstance"]


def _kind(value: Any) -> type:
    known = value.tracer.known(value.node)
    return torch.Tensor if known is UNKNOWN else type(known)
