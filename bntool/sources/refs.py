"""How a model is written down: `pkg.mod:factory`, `file.py:factory(depth=50)`, or the path of a file.

Parsing only: nothing here imports, opens or runs what a reference names.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bntool.errors import UsageError

_CALL = re.compile(r"(?P<place>.+?):(?P<factory>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)\s*(?P<call>\(.*\))?", re.S)
FORMS = "pkg.mod:factory, file.py:factory(depth=50), file.pt2, file.onnx, a bundle directory, or file.pt"


@dataclass(frozen=True)
class PythonRef:
    """A factory in Python code: `place` is a file ending in .py or the dotted name of a module."""

    place: str
    factory: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")

    def __str__(self) -> str:
        call = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"{self.place}:{self.factory}" + (f"({call})" if call else "")


@dataclass(frozen=True)
class FileRef:
    """A file or directory that holds a model."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


def parse(text: str) -> PythonRef | FileRef:
    """The reference that `text` spells.

    Raises: UsageError when the arguments of the call are not keyword literals.
    """
    if not text.strip():
        raise UsageError("the model reference is empty", next=f"Write one of: {FORMS}.")
    match = _CALL.fullmatch(text.strip())
    if match is None or Path(text).exists():
        return FileRef(Path(text))
    return PythonRef(match["place"], match["factory"], keywords(match["call"] or "()", text))


def keywords(call: str, text: str) -> dict[str, Any]:
    """The keyword arguments of `(depth=50, widths=[8, 16])`: literals only, never evaluated."""
    advice = "Write keyword arguments with literal values, as in nets.py:resnet(depth=50, norm=True)."
    try:
        node = ast.parse("f" + call, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError("not one call with keyword arguments")
        names = [k.arg for k in node.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError("a name is missing or given twice")
        return {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError) as problem:
        raise UsageError(f"cannot read the arguments {call}", where=text, next=advice) from problem
