"""The user's own functions that may run when a module is called, as far as their code says."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from bntool.graphs.fx_contents import FOREIGN


def functions_of(classes: Iterable[type], held: Iterable[FunctionType] = ()) -> set[FunctionType]:
    """Methods of the classes, functions that instances hold, and all that those name, define or enclose."""
    own = {base for cls in classes for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch"}
    return {f for cls in own for f in _of_class(cls)} | {
        f for h in held if _is_own(h) for f in _reached((h,))
    }


@cache
def _of_class(cls: type) -> frozenset[FunctionType]:
    methods = [f for name, f in vars(cls).items() if name != "__init__"]
    plain = [inspect.unwrap(getattr(f, "__func__", getattr(f, "fget", f))) for f in methods]
    return _reached(tuple(f for f in plain if isinstance(f, FunctionType)))


@cache
def _reached(functions: tuple[FunctionType, ...]) -> frozenset[FunctionType]:
    found, todo = set(functions), list(functions)
    while todo:
        more = {f for f in _named(todo.pop()) if _is_own(f)} - found
        found |= more
        todo += more
    return frozenset(found)


def _named(function: FunctionType) -> Iterator[FunctionType]:
    names = {name for code in inside(function.__code__) for name in code.co_names}
    values = [function.__globals__.get(name) for name in names]
    values += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    modules = [v for v in values if isinstance(v, ModuleType) and _is_own_name(v.__name__)]
    values += [vars(module).get(name) for module in modules for name in names]
    for value in values:
        for one in _items(value):
            one = inspect.unwrap(one) if callable(one) else one
            if isinstance(one, FunctionType):
                yield one


def _items(value: Any) -> Iterable[Any]:
    if type(value) is dict:
        return list(value.values())
    return value if type(value) in (list, tuple) else (value,)


def inside(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from inside(constant)


def _is_own(function: FunctionType) -> bool:
    """(A decorator's function goes by the name of what it is around.)"""
    return _is_own_name(str(function.__globals__.get("__name__")))


def _is_own_name(module: str) -> bool:
    return module.partition(".")[0] not in FOREIGN
