"""Change an ONNX model: new tensors under new names, nodes taken out, what nothing reads removed.

A tensor that exists is never written, so that nothing else that reads it can change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from bntool.graphs.onnx_ir import OnnxGraph, reads
from bntool.graphs.onnx_op import Slot
from bntool.graphs.onnx_scopes import Scope, subgraphs
from bntool.graphs.onnx_tensors import PENDING, set_location

Values = Callable[[], NDArray[Any]]
#: a tensor of up to this many bytes is written into the model's own message
INLINE_BYTES = 1024


@dataclass
class Edit:
    """The edits of one model, in place. Call `finish` when all are made."""

    graph: OnnxGraph
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = {name for scope in self.graph.scopes.values() for name in _names(scope)}

    def fresh(self, base: str) -> str:
        """A name that nothing in the model has."""
        name, number = base, 1
        while name in self.names:
            name, number = f"{base}_{number}", number + 1
        self.names.add(name)
        return name

    def tensor(self, base: str, shape: tuple[int, ...], dtype: np.dtype[Any], values: Values) -> str:
        """A new initialiser, computed when the model is written. Returns: its name."""
        name, graph = self.fresh(base), self.graph.model.graph
        data_type = int(helper.np_dtype_to_tensor_dtype(dtype))
        made = TensorProto(name=name, dims=shape, data_type=data_type)
        if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize <= INLINE_BYTES:
            made.raw_data = np.ascontiguousarray(values()).tobytes()
        else:
            set_location(made, {"location": PENDING})
            self.graph.store.pending[name] = values
        graph.initializer.append(made)
        if self.graph.model.ir_version < 4:  # every initialiser had to be an input too
            graph.input.append(helper.make_tensor_value_info(name, data_type, shape))
        return name

    def put(self, slot: Slot, name: str) -> None:
        """Make the slot's node read the tensor `name`."""
        inputs = slot.proto.input
        while len(inputs) <= slot.port:
            inputs.append("")
        inputs[slot.port] = name

    def add_behind(self, scope: Scope, proto: NodeProto, name: str) -> None:
        """Put an Add of the tensor `name` behind the node."""
        label = self.fresh(f"{proto.name or proto.output[0]}_bias")
        self.put_behind(scope, proto, lambda x, y: helper.make_node("Add", [x, name], [y], name=label))

    def put_behind(self, scope: Scope, proto: NodeProto, make: Callable[[str, str], NodeProto]) -> None:
        """Put the node `make(input, output)` behind the node, for all who read it."""
        nodes = self.graph.scopes[scope].node
        place = next(i for i, node in enumerate(nodes) if node is proto)
        out = proto.output[0]
        inner = self.fresh(f"{out}_before")
        nodes[place].output[0] = inner
        nodes.insert(place + 1, make(inner, out))

    def drop_bias(self, scope: Scope, slot: Slot) -> None:
        """Take a bias out that has come out all zero."""
        if slot.proto.op_type == "Add":
            self.bypass(scope, slot.proto, 1 - slot.port)
        elif slot.port < len(slot.proto.input):
            del slot.proto.input[slot.port :]

    def bypass(self, scope: Scope, proto: NodeProto, port: int = 0) -> None:
        """Let all who read the node's output read its input; an output of the graph keeps its name."""
        graph, x, y = self.graph.scopes[scope], proto.input[port], proto.output[0]
        if all(value.name != y for value in graph.output):
            _rename_reads(graph, y, x)
            return
        maker = next((node for node in graph.node if x in node.output), None)
        if maker is None or any(value.name == x for value in graph.output):
            proto.CopyFrom(helper.make_node("Identity", [x], [y], name=proto.name))
            return
        proto.output[0] = self.fresh(f"{y}_gone")
        maker.output[list(maker.output).index(x)] = y
        _rename_reads(graph, x, y)

    def finish(self) -> None:
        """Remove the nodes, tensors and notes on values that nothing reads any more."""
        for scope in sorted(self.graph.scopes, key=len, reverse=True):
            _remove_dead(self.graph.scopes[scope])
        _remove_unread_tensors(self.graph)


def _names(graph: GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
    return names


def _rename_reads(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for port, name in enumerate(node.input):
            if name == old:
                node.input[port] = new
        for _, inner in subgraphs(node):
            _rename_reads(inner, old, new)
            for value in inner.output:
                if value.name == old:
                    _rename_output(inner, value.name, new)


def _rename_output(graph: GraphProto, old: str, new: str) -> None:
    """A subgraph's output may be a value from outside, read under its new name."""
    for value in graph.output:
        if value.name == old:
            value.name = new


def _remove_dead(graph: GraphProto) -> None:
    count = reads(graph)
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        if node.output and not any(count[name] for name in node.output if name):
            count.subtract(reads(GraphProto(node=[node])))
            del graph.node[place]
    made = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    for place in range(len(graph.value_info) - 1, -1, -1):
        if graph.value_info[place].name not in made:
            del graph.value_info[place]


def _remove_unread_tensors(graph: OnnxGraph) -> None:
    for proto in graph.scopes.values():
        count = reads(proto)
        old = graph.model.ir_version < 4
        given = set() if old else {value.name for value in proto.input}
        gone = {t.name for t in proto.initializer if not count[t.name]} - given
        for place in range(len(proto.initializer) - 1, -1, -1):
            if proto.initializer[place].name in gone:
                graph.store.pending.pop(proto.initializer[place].name, None)
                del proto.initializer[place]
        for place in range(len(proto.input) - 1, -1, -1):
            if old and proto.input[place].name in gone:
                del proto.input[place]
