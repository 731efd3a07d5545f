"""Copying a module several times faster than `copy.deepcopy`, with the same result.

Most of what a module holds is flags, sizes and empty dictionaries of hooks, for which deepcopy's bookkeeping
is the cost. A module that has its own idea of how it is copied or pickled is left to deepcopy.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import FunctionType
from typing import Any

import torch
from torch import nn

SHARED = (int, float, str, bool, type(None), complex, bytes, type, FunctionType, torch.dtype, torch.device)
CONTAINERS = (dict, OrderedDict, list, set)


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; what `memo` has by id (parameters, whole modules) is taken from there, as in deepcopy."""
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    if not _plain(type(module)):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = type(module).__new__(type(module))
    for name, value in module.__dict__.items():
        new.__dict__[name] = _children(value, memo) if name == "_modules" else _value(value, memo)
    return new


def _children(children: dict[str, nn.Module | None], memo: dict[int, Any]) -> dict[str, nn.Module | None]:
    return type(children)((name, None if m is None else copied(m, memo)) for name, m in children.items())


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in SHARED or (kind is tuple and all(type(v) in SHARED for v in value)):
        return value
    if kind in CONTAINERS and not value and id(value) not in memo:
        return kind()
    return copy.deepcopy(value, memo)


def _plain(cls: type[nn.Module]) -> bool:
    """Whether nothing but torch itself says how instances are copied."""
    if hasattr(cls, "__deepcopy__") or cls.__reduce_ex__ is not object.__reduce_ex__:
        return False
    if cls.__reduce__ is not object.__reduce__ or cls.__getstate__ is not nn.Module.__getstate__:
        return False
    return str(cls.__setstate__.__module__).startswith("torch.nn.")
