"""Code that catches what a forward raises: a trace, in which little raises, goes on where that does not."""

from __future__ import annotations

import dis
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType

from bntool.graphs.fx_reachable import inside


def catch(functions: Iterable[FunctionType]) -> bool:
    """Whether any of them may catch what is raised while it runs."""
    return any(_has_handler(function.__code__) for function in functions)


@cache
def _has_handler(function: CodeType) -> bool:
    """(Leaving a with-statement is a handler too, which lets everything through, but for one.)"""
    for code in inside(function):
        if code.co_exceptiontable:
            names = [instruction.opname for instruction in dis.get_instructions(code)]
            handlers = names.count("PUSH_EXC_INFO") - names.count("WITH_EXCEPT_START")
            if handlers > 0 or "suppress" in code.co_names:
                return True
    return False
