"""An ONNX model as the planner sees it, subgraphs included; no torch, no weight read that nobody asks for.

This works on the protobuf messages themselves: importing onnx_ir brings in sympy, 0.3 s and 36 MB, a third of
what folding a ResNet-50 may cost as a whole process. An `onnx_ir.Model` is taken and given back all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

from bntool.algebra.affine import Blocked
from bntool.algebra.rules import DATA_SIZES
from bntool.errors import LoadError
from bntool.graphs.base import Index, Node, Shape, connect
from bntool.graphs.onnx_constants import Const, evaluate, initialisers, overridable_inputs, spelled_out
from bntool.graphs.onnx_kinds import KINDS
from bntool.graphs.onnx_movement import split
from bntool.graphs.onnx_op import Op, Origin, made_by
from bntool.graphs.onnx_open import open_sizes
from bntool.graphs.onnx_ranks import ranks_of
from bntool.graphs.onnx_scopes import Scope, own_names, subgraphs
from bntool.graphs.onnx_shapes import (
    Typed,
    Types,
    infer,
    infer_inner,
    is_static,
    told,
    types_of,
    unsized,
)
from bntool.graphs.onnx_tensors import Store, dtype_name

OVERRIDABLE = "is an input of the model, which a caller may set"
SPARSE = "is a sparse tensor"
UNSORTED = "it reads a value before the node that makes it, so it is no valid ONNX model"
SORT = "Put its nodes in order: onnx_ir.load(file), graph.sort(), onnx_ir.save."
#: elements of an index array beyond which a layout is not followed
INDEX_LIMIT = 1 << 27


@dataclass
class OnnxGraph:
    """`Graph` over a ModelProto: the main graph and every subgraph, disjoint parts of one list."""

    model: ModelProto
    store: Store
    static: bool = False
    """Whether all inputs have fixed sizes."""
    nodes: list[Node] = field(default_factory=list)
    scopes: dict[Scope, GraphProto] = field(default_factory=dict)
    """The main graph under () and every subgraph under its path."""
    consts: dict[Scope, dict[str, Const]] = field(default_factory=dict)
    """What is constant in each scope, by name."""
    _readers: dict[Hashable, Node] = field(default_factory=dict)

    def shape(self, node: Node) -> Shape:
        return origin(node).shape

    def unsized(self, node: Node) -> Blocked:
        return DATA_SIZES

    def dtype(self, node: Node) -> str | None:
        return origin(node).dtype

    def index(self, node: Node) -> Index | Blocked:
        shape, move = self.shape(node.inputs[0]), origin(node).move
        if shape is None or move is None:
            return DATA_SIZES
        size = int(np.prod(shape, dtype=np.int64))
        if size > INDEX_LIMIT:
            return Blocked("it moves too many values to follow")
        try:
            return np.asarray(move(np.arange(size, dtype=np.int64).reshape(shape)))
        except (ValueError, IndexError, KeyError) as problem:
            return Blocked(f"where it moves values is not known: {problem}")

    def readers(self, key: Hashable) -> Sequence[Node]:
        """One node: a key belongs to one input of it, as an edit never writes a tensor that others read."""
        if not self._readers:
            self._readers = {p.key: node for node in self.nodes for p in node.params.values()}
        return [self._readers[key]]

    def left_out(self) -> list[tuple[str, str]]:
        """No norm: every node of the model is a node of the graph."""
        return []


def _has_effects(node: Node) -> bool:
    """Whether a node is there for something else than a value."""
    return node.kind == "opaque" and not origin(node).proto.output


def origin(node: Node) -> Origin:
    assert isinstance(node.origin, Origin)
    return node.origin


def opset_of(model: ModelProto) -> int:
    """Which version of ONNX's own operators it is written in."""
    return max((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), default=1)


def read(model: ModelProto, store: Store, given: Mapping[str, Iterable[int]] | None = None) -> OnnxGraph:
    """The neutral graph of `model`. `given` are shapes for inputs whose sizes are open."""
    graph = OnnxGraph(model, store, is_static(model))
    blocked = overridable_inputs(model)
    sizes = open_sizes(model, given or {})
    inferred = _inferred(model, store, sizes)
    _Scope(graph, opset_of(model), model.graph, inferred.graph, (), "", blocked).read()
    connect(graph.nodes, [node for node in graph.nodes if node.kind == "output" or _has_effects(node)])
    return graph


def _inferred(model: ModelProto, store: Store, sizes: Mapping[str, int]) -> ModelProto:
    """The model with sizes, for as long as numbers computed from known sizes lead to more of them.

    Here a size that stands for an open one is as good as one that is fixed.
    """
    inferred = infer(model, sizes)
    left = unsized(inferred.graph)
    while left:
        model = spelled_out(model, store, types_of(inferred.graph, static=True))
        inferred, before = infer(model, sizes, told(inferred.graph)), left
        left = unsized(inferred.graph)
        if left == before:
            break
    return inferred


class _Scope:
    """One graph or subgraph being read. `outer` is the scope whose values it may capture."""

    def __init__(
        self,
        graph: OnnxGraph,
        opset: int,
        proto: GraphProto,
        inferred: GraphProto,
        scope: Scope,
        prefix: str,
        overridable: set[str],
        outer: _Scope | None = None,
    ) -> None:
        self.graph, self.opset, self.proto = graph, opset, proto
        self.scope, self.prefix, self.outer = scope, prefix, outer
        graph.scopes[scope] = proto
        self.types: Types = types_of(inferred, static=graph.static and outer is None)
        self.types.ranks = ranks_of(proto, self.types, outer.types.ranks if outer else {})
        self.consts: dict[str, Const] = dict(outer.consts) if outer else {}
        self.consts.update(initialisers(proto, graph.store, scope, overridable))
        graph.consts[scope] = self.consts
        self.unknown: dict[str, str] = dict(outer.unknown) if outer else {}
        self.unknown.update(dict.fromkeys(overridable, OVERRIDABLE))
        self.unknown.update((t.values.name, SPARSE) for t in proto.sparse_initializer)
        self.values: dict[str, Node] = {}
        self.reads = reads(proto)
        self.made = {name for node in proto.node for name in node.output}

    def read(self) -> None:
        for value in self.proto.input:
            if value.name not in self.consts:
                self._add_input(value.name)
        for node in self.proto.node:
            self._read_node(node)
        for value in self.proto.output:
            if value.name in self.values:
                name = f"{value.name}@output"
                self.graph.nodes.append(Node(name, "output", (self.values[value.name],), where=value.name))

    def _add_input(self, name: str) -> Node:
        typed = self.types.of(name)
        if typed.shape is None and self.outer is not None:
            typed = self.outer.type_of(name)
            self.types.values[name] = typed
        dtype = dtype_name(typed.elem_type) if typed.elem_type else None
        made = Origin(NodeProto(), self.scope, shape=typed.shape, dtype=dtype)
        node = Node(name, "input", where=self.prefix + name, origin=made)
        self.graph.nodes.append(node)
        self.values[name] = node
        return node

    def type_of(self, name: str) -> Typed:
        found = self.types.of(name)
        return found if found.elem_type or self.outer is None else self.outer.type_of(name)

    def _read_node(self, proto: NodeProto) -> None:
        constant = evaluate(proto, self.consts, self.types, self.scope, self.graph.store)
        if constant is not None:
            self.consts.update(constant)
            return
        for name in (*proto.input, *captured(proto)):
            if name and name not in self.values and name not in self.consts:
                if name in self.made:
                    raise LoadError(UNSORTED, where=f"node {proto.name or made_by(proto)}", next=SORT)
                self._add_input(name)  # captured from an outer scope, or what the caller may override
        known = (self.types, self.scope, self.consts, self.values, self.reads)
        op = Op(proto, self.opset, *known, self.prefix, self.unknown)
        nodes = _translate(op)
        for gone in op.merged:
            self.graph.nodes.remove(gone)
        self.graph.nodes.extend((*op.extra, *nodes))
        self.values.update((out, made) for out, made in zip(proto.output, nodes, strict=False) if out)
        self._read_subgraphs(proto, op.where)

    def _read_subgraphs(self, proto: NodeProto, where: str) -> None:
        outside = {name: self.type_of(name) for name in captured(proto)}
        for name, graph in subgraphs(proto):
            types = infer_inner(self.graph.model, graph, outside).graph
            scope = (*self.scope, made_by(proto), name)
            inner = _Scope(self.graph, self.opset, graph, types, scope, f"{where}/{name}/", set(), self)
            inner.read()


def _translate(op: Op) -> list[Node]:
    proto = op.proto
    if proto.domain not in ("", "ai.onnx"):
        return _opaque(op, f"{proto.domain}.{proto.op_type}")
    if proto.op_type == "Split":
        found: Node | list[Node] | str = split(op)
    else:
        rule = KINDS.get(proto.op_type)
        found = proto.op_type if rule is None else rule(op)
        found = f"{proto.op_type} ({found})" if rule is not None and isinstance(found, str) else found
    if isinstance(found, str):
        op.extra.clear()
        return _opaque(op, found)
    return found if isinstance(found, list) else [found, *_further(op, found)]


def _opaque(op: Op, what: str) -> list[Node]:
    """A node that a map neither enters nor leaves. Shape and the like read no values, only sizes."""
    sizes_only = op.proto.op_type in ("Shape", "Size")
    names = [] if sizes_only else [*op.proto.input, *captured(op.proto)]
    inputs = [op.nodes[name] for name in names if name in op.nodes]
    first = op.node("opaque", *inputs, what=what)
    return [first, *_further(op, first)]


def _further(op: Op, first: Node) -> list[Node]:
    """Outputs beyond the first are values nothing is known of, computed from what the first is."""
    what = op.proto.op_type
    return [op.node("opaque", first, port=port, what=what) for port in range(1, len(op.proto.output))]


def captured(node: NodeProto) -> list[str]:
    """Names that the node's subgraphs read from the scopes around them."""
    found: dict[str, None] = {}
    for _, graph in subgraphs(node):
        own = own_names(graph)
        for inner in graph.node:
            found.update(dict.fromkeys(n for n in (*inner.input, *captured(inner)) if n and n not in own))
        found.update(dict.fromkeys(v.name for v in graph.output if v.name not in own))
    return list(found)


def reads(graph: GraphProto) -> Counter[str]:
    """How often every value of the graph is read: by nodes, by their subgraphs, and as an output."""
    count: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        count.update(name for name in (*node.input, *captured(node)) if name)
    return count
