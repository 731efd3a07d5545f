"""Which calls of a traced model anybody sees anything of: the others may compute what they like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from bntool.graphs.base import FRESH, Node, memory_of
from bntool.graphs.fx_calls import function_name


def seen_roots(nodes: Sequence[Node]) -> list[Node]:
    """Outputs, values that hooks see, calls with effects, and what overwrites memory that these read."""
    roots = [n for n in nodes if n.kind == "output" or n.watched or _has_effects(n)]
    reached = _behind(roots)
    writers = [n for n in nodes if n.overwrites and n not in reached]
    if not writers:
        return roots
    while True:
        read = set(map(memory_of, reached))
        more = [n for n in writers if memory_of(n) in read or memory_of(n).kind not in FRESH]
        if not more:
            return roots
        roots += more
        writers = [n for n in writers if n not in more]
        reached = _behind(roots)


def _behind(roots: Iterable[Node]) -> set[Node]:
    """All that `roots` derive from, themselves included."""
    found, todo = set[Node](), list(roots)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.inputs)
    return found


def _has_effects(node: Node) -> bool:
    """Whether a call may do more than give a value: code that is not torch's, assertions."""
    if node.kind != "opaque" or not isinstance(node.origin, fx.Node):
        return node.kind == "opaque"
    return node.origin.op == "call_module" or function_name(node.origin) in ("", "assert")
