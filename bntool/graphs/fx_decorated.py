"""A forward behind decorators that take anything is given what the function takes that they wrap."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import CodeType
from typing import Any

from torch import fx

from bntool.graphs.fx_sizes import Inputs

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_decorated(forward: Callable[..., Any]) -> bool:
    """Whether fx would give the decorator's function what the forward takes beyond plain arguments."""
    inner: Any = inspect.unwrap(forward)
    return inner is not forward and bool(inner.__code__.co_kwonlyargcount or _takes_more(inner.__code__))


def arguments_behind(
    forward: Callable[..., Any],
    placeholder: Callable[[inspect.Parameter], fx.Proxy],
    given: Inputs | None,
    as_given: bool,
) -> tuple[Callable[..., Any], list[fx.Proxy]]:
    """A function of the module and of traced values that calls a decorated forward, and those values.

    They are handed on as those that are `given`, the others by name. What only its `**kwargs` would take is
    left out: none of it may be given, nor may it ask for that, unless it is always called `as_given`.
    Raises: ValueError.
    """
    inner: Any = inspect.unwrap(forward)
    parameters = [*inspect.signature(inner).parameters.values()][1:]
    named = [p for p in parameters if p.kind not in VARIABLE]
    further = [p.name for p in parameters if p.kind in VARIABLE]
    if not as_given and any(_asked_for(inner.__code__, name) for name in further):
        raise ValueError("a decorated forward asks which further arguments it has")
    if given is not None and not {p.name for p in named}.issuperset(given[1]):
        raise ValueError("a decorated forward is given further arguments")
    needed = [p for p in named if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    places = len(needed if given is None else given[0])

    def call(root: Any, *values: Any) -> Any:
        by_name = list(zip(named, values, strict=True))[places:]
        return forward(root, *values[:places], **{p.name: v for p, v in by_name if v is not p.default})

    return call, [placeholder(parameter) for parameter in named]


def _takes_more(code: CodeType) -> int:
    return code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)


def _asked_for(code: CodeType, name: str) -> bool:
    """Whether code does anything with its `*args` or `**kwargs` but hand them on."""
    reads = list(_reads(code, name))
    return name in code.co_cellvars or not all(
        then in ("DICT_MERGE", "LIST_EXTEND", "CALL_FUNCTION_EX") for then in reads
    )


def _reads(code: CodeType, name: str) -> Iterator[str]:
    """What is done next to each read of a variable."""
    instructions = list(dis.get_instructions(code))
    for instruction, then in pairwise(instructions):
        several = isinstance(instruction.argval, tuple) and name in instruction.argval
        if several or (instruction.argval == name and instruction.opname not in ("COPY_FREE_VARS", "RESUME")):
            yield then.opname
