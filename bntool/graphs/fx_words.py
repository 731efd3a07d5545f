"""Words about values that nobody goes by: those of an error, a warning, a line of a log."""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType, FrameType

#: instructions with which a text is kept or looked into
KEEPS = ("STORE", "COMPARE", "CONTAINS", "IS_OP", "JUMP", "POP_JUMP", "FOR_ITER", "RETURN", "YIELD")


def only_tells(frame: FrameType) -> bool:
    """Whether the text that code is making goes straight into an error, or a call that gives nothing."""
    return _only_tells(frame.f_code, frame.f_lasti)


@lru_cache(1000)
def _only_tells(code: CodeType, place: int) -> bool:
    for instruction in dis.get_instructions(code):
        if instruction.offset > place:
            if instruction.opname in ("RAISE_VARARGS", "POP_TOP"):
                return True
            if instruction.opname.startswith(KEEPS):
                return False
    return False
