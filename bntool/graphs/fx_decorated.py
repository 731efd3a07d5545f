"""A forward that takes anything, to hand it on, is given what its signature, or what it wraps, names."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from torch import fx

from bntool.graphs.fx_sizes import Inputs

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def hands_on(forward: Callable[..., Any], given: Inputs | None, as_given: bool) -> bool:
    """Whether what it takes goes through a decorator that fx would not see, or on to others as `**kwargs`.

    (Called `as_given`, it has none of those.)
    """
    inner: Any = inspect.unwrap(forward)
    code = inner.__code__
    if inner is not forward:
        takes_more = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
        return bool(code.co_kwonlyargcount or takes_more or _of_decorators(forward))
    parameters = [*inspect.signature(forward).parameters.values()][1:]
    plain = sum(p.kind in PLAIN for p in parameters)
    fits = given is None or (len(given[0]) <= plain and {p.name for p in parameters}.issuperset(given[1]))
    unasked = as_given or not further(forward, asked_for=True)
    return bool(code.co_flags & inspect.CO_VARKEYWORDS) and fits and unasked


def further(forward: Callable[..., Any], *, asked_for: bool = False) -> list[str]:
    """Its `*args` and `**kwargs`, if it does anything with them; if `asked_for`, more than hand them on."""
    inner: Any = inspect.unwrap(forward)
    found = [p for p in inspect.signature(inner).parameters.values() if p.kind in VARIABLE]
    counts = _asked_for if asked_for else _is_read
    own = [written(p) for p in found if counts(inner.__code__, p.name)]
    return own if asked_for else list(dict.fromkeys([*_of_decorators(forward), *own]))


def written(parameter: inspect.Parameter) -> str:
    """Its name, with the stars of `*args` and `**kwargs`."""
    return str(parameter.replace(annotation=parameter.empty)).partition("=")[0]


def _of_decorators(forward: Any) -> list[str]:
    """What decorators take themselves: what only they name, `*args` and `**kwargs` that they look into."""
    inner = inspect.unwrap(forward)
    known = inner.__code__.co_varnames[: inner.__code__.co_argcount + inner.__code__.co_kwonlyargcount]
    found: list[str] = []
    while hasattr(forward, "__wrapped__"):
        if isinstance(forward, FunctionType):
            parameters = inspect.signature(forward, follow_wrapped=False).parameters.values()
            variable = [p for p in parameters if p.kind in VARIABLE and _asked_for(forward.__code__, p.name)]
            named = [p for p in list(parameters)[1:] if p.kind not in VARIABLE and p.name not in known]
            found += map(written, (*named, *variable))
        forward = forward.__wrapped__
    return found


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
    if not as_given and further(forward, asked_for=True):
        raise ValueError("a decorated forward asks which further arguments it has")
    if given is not None and not {p.name for p in named}.issuperset(given[1]):
        raise ValueError("a decorated forward is given further arguments")
    needed = [p for p in named if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    places = len(needed if given is None else given[0])

    def call(root: Any, *values: Any) -> Any:
        by_name = list(zip(named, values, strict=True))[places:]
        return forward(root, *values[:places], **{p.name: v for p, v in by_name if v is not p.default})

    return call, [placeholder(parameter) for parameter in named]


def _asked_for(code: CodeType, name: str) -> bool:
    """Whether code does anything with its `*args` or `**kwargs` but hand them on."""
    reads = list(_reads(code, name))
    return name in code.co_cellvars or not all(
        then in ("DICT_MERGE", "LIST_EXTEND", "CALL_FUNCTION_EX", "BUILD_MAP") for then in reads
    )


def _is_read(code: CodeType, name: str) -> bool:
    return name in code.co_cellvars or any(_reads(code, name))


def _reads(code: CodeType, name: str) -> Iterator[str]:
    """What is done next to each read of a variable."""
    instructions = list(dis.get_instructions(code))
    for instruction, then in pairwise(instructions):
        several = isinstance(instruction.argval, tuple) and name in instruction.argval
        if several or (instruction.argval == name and instruction.opname not in ("COPY_FREE_VARS", "RESUME")):
            yield then.opname
