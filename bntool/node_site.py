"""A node of a graph as the rules of the algebra ask about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bntool.algebra.affine import Array, Blocked
from bntool.algebra.moves import Index
from bntool.changes import Constants
from bntool.graphs.base import Graph, Node


@dataclass
class NodeSite:
    """A node as the rules of the algebra see it."""

    graph: Graph
    node: Node
    constants: Constants

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.node.attrs

    @property
    def arity(self) -> int:
        return len(self.node.inputs)

    def constant(self, port: int) -> Array | None:
        return self.constants.value(self.node.inputs[port])

    def sizes(self, port: int) -> tuple[int, ...] | None:
        return self.graph.shape(self.node.inputs[port])

    def out_sizes(self) -> tuple[int, ...] | None:
        return self.graph.shape(self.node)

    def index(self) -> Index | Blocked:
        return self.graph.index(self.node)

    def read_by_others(self, port: int) -> bool:
        return len(self.node.inputs[port].users) > 1

    def is_square(self) -> bool:
        return self.arity == 2 and self.node.inputs[0] is self.node.inputs[1]

    def unsized(self, port: int) -> Blocked:
        return self.graph.unsized(self.node.inputs[port])
