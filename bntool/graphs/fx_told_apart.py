"""`isinstance` and `type` of traced values, answered for what they stand for."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import _named_member_accessor

from bntool.graphs.fx_sizes import UNKNOWN
from bntool.graphs.fx_upstream import is_plain
from bntool.graphs.fx_values import Attribute, Value

#: (old code asks for a `Variable`, which every tensor is an instance of, though its class is no subclass)
A_TENSOR = torch.empty(0)
#: functions that remember what they gave for the same arguments
REMEMBERING = functools._lru_cache_wrapper


def _isinstance(value: Any, kinds: Any) -> bool:
    """(What is not known may well be a tensor: libraries ask that of sizes, to reckon with both.)"""
    if type(value) in (Value, Attribute):
        unknown = value.tracer.known(value.node) is UNKNOWN
        if unknown and isinstance(A_TENSOR, kinds):
            return True
        kind = _kind(value)
        return isinstance(A_TENSOR, kinds) if kind is torch.Tensor else issubclass(kind, kinds)
    return isinstance(value, kinds)


class _OfTypes(type):
    """What the builtin `type` is to those who have it from here; `told` are modules that it is asked of."""

    told: set[nn.Module]

    def __call__(cls, *args: Any, **named: Any) -> Any:
        if len(args) == 1 and type(args[0]) in (Value, Attribute):
            return _kind(args[0])
        if len(args) == 1 and isinstance(args[0], nn.Module) and type(args[0]) is not nn.Identity:
            cls.told.add(args[0])
        return type(*args, **named)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, type)

    def __getattr__(cls, name: str) -> Any:
        return getattr(type, name)


@contextlib.contextmanager
def told_apart(
    classes: Iterable[type], functions: Iterable[FunctionType], told: set[nn.Module]
) -> Iterator[None]:
    """Code that asks whether a traced value is a tensor, a size or a number is told what it stands for.

    That is `torch.is_tensor`, `torch.func.functional_call`, and `isinstance` and `type` in the packages in
    which `classes` are defined and where `functions` are; what the latter remember for equal arguments is
    worked out anew. (It would go for all code with a `__class__`, but torch's C++ would take it for a tensor,
    or with another builtin, but torch.compile would not know that.) Modules of which more is `told` than of
    an nn.Identity are noted.
    """

    def answer(value: Any, kinds: Any) -> bool:
        found = _isinstance(value, kinds)
        if isinstance(value, nn.Module) and found != issubclass(nn.Identity, kinds):
            told.add(value)
        return found

    own = {base.__module__.partition(".")[0] for cls in classes for base in cls.__mro__}
    packages = own - {"torch", "builtins", "bntool"}
    near = [(name, m) for name, m in list(sys.modules.items()) if name.startswith(tuple(packages))]
    found = [vars(m) for name, m in near if name.partition(".")[0] in packages]
    named = list({id(f.__globals__): f.__globals__ for f in functions}.values())
    spaces = list({id(space): space for space in (*found, *named)}.values())
    told_here = [s for s in (vars(torch), vars(_named_member_accessor), *spaces) if "isinstance" not in s]
    typed = [s for s in spaces if "type" not in s]
    remembering = [(s, name, f) for s in named for name, f in s.items() if isinstance(f, REMEMBERING)]
    cells = [(cell, cell.cell_contents) for cell in _remembering_cells(classes, named)]
    for cell, function in cells:
        cell.cell_contents = function.__wrapped__
    for space in told_here:
        space["isinstance"] = answer
    for space in typed:
        space["type"] = _OfTypes("type", (), {"told": told})
    for space, name, function in remembering:
        space[name] = function.__wrapped__
    try:
        yield
    finally:
        for space in told_here:
            del space["isinstance"]
        for space in typed:
            del space["type"]
        for space, name, function in remembering:
            space[name] = function
        for cell, function in cells:
            cell.cell_contents = function


def _remembering_cells(classes: Iterable[type], spaces: Iterable[dict[str, Any]]) -> list[CellType]:
    """Where decorators hold what remembers for the function that they are around."""
    own = {base for cls in classes for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch"}
    known = [getattr(f, "__func__", f) for cls in own for f in vars(cls).values()]
    known += [f for space in spaces for f in space.values()]
    found = dict[int, CellType]()
    for around in [f for f in known if type(f) is FunctionType and "__wrapped__" in vars(f)]:
        function: Any = around
        while isinstance(function, FunctionType):
            cells = [cell for cell in function.__closure__ or () if cell != CellType()]
            found |= {id(cell): cell for cell in cells if isinstance(cell.cell_contents, REMEMBERING)}
            function = getattr(function, "__wrapped__", None)
    return list(found.values())


def _kind(value: Any) -> type:
    known = value.tracer.known(value.node)
    if known is UNKNOWN and is_plain(value.node):
        raise value.tracer.refusal("what sort of value it is, is not known")
    return torch.Tensor if known is UNKNOWN else type(known)
