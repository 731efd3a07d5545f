"""Every reason in the source for which something cannot be done, read with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "bntool"
#: calls whose last argument is a reason
CALLS = ("Blocked", "OutOfRange", "mark")
#: functions that return reasons, "" for none
GIVERS = ("_why_left_out", "why_pinned", "_why_fixed")
#: names in bntool/graphs/ under which a reason waits for its use
HOLDERS = ("NO_BIAS", "why", "reason")


def reasons() -> dict[str, str]:
    """Reason -> the file it is in. What is filled in is written {}."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        held = HOLDERS if path.parent.name == "graphs" else ()
        for text in _in_file(ast.parse(path.read_text()), held):
            found.setdefault(text, str(path.relative_to(ROOT)))
    return found


def _in_file(tree: ast.AST, held: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[*_, last]):
                yield from _texts(last) if name in CALLS else ()
            case ast.FunctionDef(name=name) if name in GIVERS:
                returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
                yield from (text for value in returned for text in _texts(value))
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in held:
                yield from _texts(value)


def _texts(node: ast.expr) -> Iterator[str]:
    """The sentences an expression may be; nothing for one that only hands another reason on."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in values)
        case ast.IfExp(body=first, orelse=second):
            yield from (*_texts(first), *_texts(second))
        case ast.BoolOp(values=several):
            yield from (text for value in several for text in _texts(value))
