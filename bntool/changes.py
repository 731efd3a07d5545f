"""What a plan makes of the parameters of an owner, and of the constants computed from them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bntool.algebra.absorbing import NORMS
from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.moves import Index
from bntool.graphs.base import Graph, Node, never_written


@dataclass(eq=False)
class Change:
    """What an owner's parameters become: `post . op . pre`, each in the form its parameters see (or None)."""

    node: Node
    pre: ChannelAffine | None = None
    post: ChannelAffine | None = None

    def take(self, side: str, form: ChannelAffine) -> Change:
        if side == "after":
            return Change(self.node, self.pre, form @ self.post if self.post is not None else form)
        return Change(self.node, self.pre @ form if self.pre is not None else form, self.post)


def same(a: ChannelAffine | None, b: ChannelAffine | None) -> bool:
    if a is None or b is None:
        return (a is None or a.is_identity) and (b is None or b.is_identity)
    return a.equals(b)


#: arithmetic on constants that is followed
ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@dataclass(frozen=True, eq=False)
class Constants:
    """Values that derive from parameters alone, as they are after `changes`."""

    graph: Graph
    changes: Mapping[Hashable, Change]

    def value(self, node: Node) -> Array | None:
        """What `node` always is; None where it depends on inputs, or on code that may write to it."""
        if not self._fixed(node):
            return None
        with np.errstate(all="ignore"):
            value = self._computed(node)
        return value if value is not None and np.isfinite(value).all() else None

    def _fixed(self, node: Node) -> bool:
        """Whether a value derives from parameters that nobody writes to."""
        if node.overwrites or node.changed_by or not (node.inputs or node.kind == "parameter"):
            return False
        if node.kind == "parameter":
            param = node.params["value"]
            return param.writable and never_written(self.graph, param)
        known = node.kind in ARITHMETIC or node.kind in ("layout", "identity", "scalar", "mean")
        return known and all(self._fixed(i) for i in node.inputs)

    def _computed(self, node: Node) -> Array | None:
        if node.kind == "parameter":
            return self._parameter(node)
        inputs = [self._computed(i) for i in node.inputs]
        known = [i for i in inputs if i is not None]
        if len(known) < len(inputs):
            return None
        if node.kind in ARITHMETIC:
            return np.asarray(ARITHMETIC[node.kind](*known), dtype=np.float64)
        if node.kind == "scalar":
            return np.asarray(node.attrs["a"] * known[0] + node.attrs["b"])
        if node.kind == "mean":
            return np.asarray(known[0].mean(axis=node.attrs["dims"], keepdims=node.attrs["keepdim"]))
        return known[0] if node.kind == "identity" else _moved(known[0], self.graph.index(node))

    def _parameter(self, node: Node) -> Array:
        value, change = node.params["value"].fetch(), self.changes.get(node.owner)
        return value if change is None or change.post is None else change.post(value)

    def owners(self, node: Node) -> Iterator[Hashable]:
        """The parameters a constant derives from; of a norm its own."""
        if node.kind == "parameter" or node.kind in NORMS:
            yield node.owner
        for value in node.inputs if node.kind not in NORMS else ():
            yield from self.owners(value)


def _moved(value: Array, index: Index | Blocked) -> Array | None:
    if isinstance(index, Blocked):
        return None
    return np.where(index < 0, 0.0, value.reshape(-1)[index])
