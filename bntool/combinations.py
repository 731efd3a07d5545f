"""Sums that read one value several times, as the linear combination they are: `y - 3 * y`, `(x + n) - x`.

Op by op a scale of one summand cannot pass a sum. Taken whole, the reads of one value add up: what cancels
out asks for nothing, and a combination of a single value is a line, which any map passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bntool.graphs.base import Node

SUMS = ("add", "sub")
#: what a combination may end in: a sum, or one with factors (`torch.add(x, y, alpha=2)`)
ENDS = (*SUMS, "combination")
LINES = (*ENDS, "scalar", "identity")
#: kinds that add a number, and the attribute that says which
OWN_SHIFT = {"scalar": "b", "combination": "shift"}
#: for every input the operands (reader, port) in which it is read
Reads = tuple[tuple[tuple[Node, int], ...], ...]


@dataclass(frozen=True, eq=False)
class Combination:
    """`node`: the value as one op on values read once each; `reads`: the operands that really read them."""

    node: Node
    reads: Reads

    def port_of(self, reader: Node, port: int) -> int | None:
        """The input of `node` that this operand reads, if it is one."""
        return next((i for i, reads in enumerate(self.reads) if (reader, port) in reads), None)


def combination(root: Node) -> Combination | None:
    """The value of `root` as a combination; None where nothing is read twice: op by op says as much then."""
    if root.kind not in ENDS:
        return None
    inside, shift = _inside(root), 0.0
    factors, reads = defaultdict[Node, float](float), defaultdict[Node, list[tuple[Node, int]]](list)
    factors[root] = 1.0
    for node in inside:
        factor = factors.pop(node)
        shift += factor * float(node.attrs.get(OWN_SHIFT.get(node.kind, ""), 0.0))
        for port, value in enumerate(node.inputs):
            factors[value] += factor * factor_of(node, port)
            reads[value].append((node, port))
    again = any(len(node.users) > 1 for node in inside if node is not root)
    if not again and all(len(reads[value]) == 1 for value in factors):
        return None
    attrs = {"factors": tuple(factors.values()), "shift": shift}
    node = replace(root, kind="combination", inputs=tuple(factors), attrs=attrs)
    return Combination(node, tuple(tuple(reads[value]) for value in factors))


def factor_of(node: Node, port: int) -> float:
    """With what a line multiplies the value that it reads at `port`."""
    if node.kind == "scalar":
        return float(node.attrs["a"])
    if node.kind == "combination":
        return float(node.attrs["factors"][port])
    return -1.0 if node.kind == "sub" and port == 1 else 1.0


def _inside(root: Node) -> list[Node]:
    """The lines that the sum is made of and that nobody else reads, each behind all of its readers."""
    inside, todo = {root: None}, [root]
    while todo:
        for value in todo.pop().inputs:
            if value not in inside and _is_line(value) and all(r in inside for r, _ in value.users):
                inside[value] = None
                todo.append(value)
    return list(inside)


def _is_line(node: Node) -> bool:
    return node.kind in LINES and not node.watched and not node.changed_by


def combinations_below(reader: Node, port: int) -> Iterator[Combination]:
    """The nearest combinations that read a value as `reader` does at `port`."""
    todo, seen = [reader], {reader}
    while todo:
        node = todo.pop(0)
        found = combination(node)
        if found is not None and found.port_of(reader, port) is not None:
            yield found
        elif _is_line(node) and all(r.kind in LINES for r, _ in node.users):
            todo += [r for r, _ in node.users if r not in seen]
            seen.update(r for r, _ in node.users)
