"""Code that catches what a forward raises: a trace, in which little raises, goes on where that does not."""

from __future__ import annotations

import dis
from collections.abc import Iterable
from functools import cache
from types import CodeType


def catches(classes: Iterable[type]) -> bool:
    """Whether methods of the user's own classes may catch what is raised while they run."""
    own = {base for cls in classes for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch"}
    return any(map(_catches, own))


@cache
def _catches(cls: type) -> bool:
    methods = [f for name, f in vars(cls).items() if name != "__init__"]
    codes = [code for f in methods if isinstance(code := getattr(f, "__code__", None), CodeType)]
    return any(code.co_exceptiontable and _has_handler(code) for code in codes)


def _has_handler(code: CodeType) -> bool:
    """(Leaving a with-statement is a handler too, which lets everything through, but for one.)"""
    names = [instruction.opname for instruction in dis.get_instructions(code)]
    handlers = names.count("PUSH_EXC_INFO") - names.count("WITH_EXCEPT_START")
    return handlers > 0 or "suppress" in code.co_names
