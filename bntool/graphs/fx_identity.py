"""Code that asks whether a value is a very object: `flag is True`, which no traced value ever is."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from bntool.graphs.fx_reachable import inside


def asks_identity(functions: Iterable[FunctionType]) -> bool:
    """Whether any of them asks it with True or False."""
    return any(_asks(function.__code__) for function in functions)


@cache
def _asks(function: CodeType) -> bool:
    pairs = (pair for code in inside(function) for pair in pairwise(dis.get_instructions(code)))
    return any(then.opname == "IS_OP" and type(first.argval) is bool for first, then in pairs)


def alternatives(value: Any, *, flags: bool) -> Sequence[Any]:
    """The very objects of which an argument is one that now is `value`; for a flag only if code asks that."""
    if isinstance(value, Enum):
        return list(type(value))
    return (True, False) if flags and type(value) is bool else ()
