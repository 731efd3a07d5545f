"""Does a change of a value show in what the model gives? Slices may leave out every element it reaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.graphs.base import Graph, Node

#: which elements of a value change
Mask = NDArray[np.bool_]

#: kinds that give every element from the elements of their inputs at the same place
ELEMENTWISE = ("identity", "scalar", "relu", "add", "sub", "mul", "div", "batch_norm", "instance_norm")
#: kinds that give every row (along the last dimension) from the same row of their input
ROWWISE = ("linear",)


@dataclass(eq=False)
class Showing:
    graph: Graph
    _hiding: dict[int, bool] = field(default_factory=dict)

    def shows(self, reader: Node, port: int, m: ChannelAffine) -> bool:
        """Whether the map, applied to what `reader` reads at `port`, changes anything the model gives."""
        if not self._may_hide(reader):
            return True
        sizes = self.graph.shape(reader.inputs[port])
        if sizes is None:
            return True
        return self._reaches(reader, port, np.broadcast_to((m.scale != 1) | (m.shift != 0), sizes))

    def _may_hide(self, reader: Node) -> bool:
        """Whether all that the node passes on goes through data movement that leaves elements out.

        It looks at no element, so that the many values without such readers cost nothing.
        """
        todo = [reader]  # (graphs may be deeper than the stack)
        while todo:
            node = todo[-1]
            through = self._is_followed(node) and not self._leaves_out(node)
            below = [r for r, _ in node.users] if through else []
            unknown = [r for r in below if id(r) not in self._hiding]
            if unknown and all(self._hiding.get(id(r), True) for r in below):
                todo.append(unknown[0])
                continue
            self._hiding[id(node)] = self._is_followed(node) and all(self._hiding.get(id(r)) for r in below)
            todo.pop()
        return self._hiding[id(reader)]

    def _is_followed(self, node: Node) -> bool:
        kinds = (*ELEMENTWISE, *ROWWISE, "layout", "concat")
        if node.kind == "instance_norm" and "mean" not in node.params:  # every place changes with every other
            return False
        return node.kind in kinds and not (node.watched or node.changed_by or node.attrs.get("training"))

    def _leaves_out(self, node: Node) -> bool:
        before, after = self.graph.shape(node.inputs[0]), self.graph.shape(node)
        known = before is not None and after is not None
        return node.kind == "layout" and known and 0 < prod(after or ()) < prod(before or ())

    def _reaches(self, reader: Node, port: int, changed: Mask) -> bool:
        """Whether a change of these elements, which `reader` reads at `port`, reaches an output."""
        todo = {self._order[id(reader)]: [(reader, port, changed)]}
        while todo:  # the first of them: what reaches it has all been looked at
            reads = todo.pop(min(todo))
            node = reads[0][0]
            masks = [self._below(*read) if self._is_followed(node) else None for read in reads]
            if any(m is None for m in masks):
                return True
            below = np.logical_or.reduce([m for m in masks if m is not None])
            if below.ndim > 1:  # what of one example is left out may, in larger batches, not be of another
                below = np.broadcast_to(below.any(axis=0, keepdims=True), below.shape)
            for r, p in node.users if below.any() else ():
                todo.setdefault(self._order[id(r)], []).append((r, p, below))
        return False

    @cached_property
    def _order(self) -> dict[int, int]:
        return {id(node): place for place, node in enumerate(self.graph.nodes)}

    def _below(self, node: Node, port: int, changed: Mask) -> Mask | None:
        sizes = self.graph.shape(node)
        if sizes is None:
            return None
        if node.kind == "layout":
            index = self.graph.index(node)
            return None if isinstance(index, Blocked) else (index >= 0) & changed.reshape(-1)[index]
        if node.kind == "concat":
            return self._part(node, port, changed, sizes)
        rows = np.any(changed, axis=-1, keepdims=True)
        return np.broadcast_to(rows if node.kind in ROWWISE else changed, sizes)

    def _part(self, node: Node, port: int, changed: Mask, sizes: tuple[int, ...]) -> Mask | None:
        parts = [self.graph.shape(i) for i in node.inputs]
        dim = node.attrs["dim"]
        if any(part is None for part in parts):
            return None
        start = sum(part[dim] for part in parts[:port] if part is not None)
        below = np.zeros(sizes, dtype=bool)
        np.moveaxis(below, dim, 0)[start : start + changed.shape[dim]] = np.moveaxis(changed, dim, 0)
        return below
