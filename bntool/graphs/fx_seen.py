"""Which calls of a traced model anybody sees anything of: the others may compute what they like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from bntool.algebra.absorbing import NORMS
from bntool.graphs.base import SHARING, Node
from bntool.graphs.fx_calls import function_name, names

#: kinds whose value is memory of its own
FRESH = names(
    "conv conv_transpose linear matmul_const embedding layer_norm group_norm scalar relu max_pool avg_pool "
    "mean sum upsample add sub mul div matmul sdpa softmax concat"
)


def seen_roots(nodes: Sequence[Node]) -> list[Node]:
    """Outputs, values that hooks see, calls with effects, and what overwrites memory that these read."""
    roots = [n for n in nodes if n.kind == "output" or n.watched or _has_effects(n)]
    reached = _behind(roots)
    writers = [n for n in nodes if n.overwrites and id(n) not in reached]
    if not writers:
        return roots
    memory: dict[int, Node] = {}
    for node in nodes:  # inputs come before their readers
        memory[id(node)] = memory[id(node.inputs[0])] if _may_share(node) else node
    read = set[int]()
    while True:
        read |= {id(memory[i]) for i in _behind(roots)}
        more = [n for n in writers if id(memory[id(n)]) in read or memory[id(n)].kind not in FRESH]
        if not more:
            return roots
        roots += more
        writers = [n for n in writers if n not in more]


def _may_share(node: Node) -> bool:
    """Whether a value is its first input's memory, or may be once norms are folded."""
    return bool(node.inputs) and (node.overwrites or node.kind in (*SHARING, *NORMS))


def _behind(roots: Iterable[Node]) -> set[int]:
    """Ids of all that `roots` derive from, themselves included."""
    found = set[int]()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if id(node) not in found:
            found.add(id(node))
            todo.extend(node.inputs)
    return found


def _has_effects(node: Node) -> bool:
    """Whether a call may do more than give a value: code that is not torch's, assertions."""
    if node.kind != "opaque" or not isinstance(node.origin, fx.Node):
        return node.kind == "opaque"
    return node.origin.op == "call_module" or function_name(node.origin) in ("", "assert")
