"""One ONNX node as the table of kinds sees it: its attributes, its values, its constants, its sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from bntool.algebra.affine import Array
from bntool.graphs.base import Node, Param, Shape
from bntool.graphs.onnx_constants import Const, as_float64, attributes, is_float, name_of
from bntool.graphs.onnx_constants import values as list_of
from bntool.graphs.onnx_scopes import Scope
from bntool.graphs.onnx_shapes import Types

#: the metadata in which torch's exporter notes which modules a node is in
TORCH_SCOPES = "pkg.torch.onnx.name_scopes"

Move = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass
class Slot:
    """Where a parameter is read and written: input `port` of `proto`.

    For the bias of a MatMul, `proto` is the Add behind it; `port` is -1 where that has to be made. The node
    computes with `times` what the constant holds (the alpha of a Gemm).
    """

    proto: NodeProto
    port: int
    const: Const | None = None
    times: float = 1.0


@dataclass
class Origin:
    """What an edit needs to know of a neutral node: its ONNX nodes, its scope and where its parameters go."""

    proto: NodeProto
    scope: Scope
    slots: dict[str, Slot] = field(default_factory=dict)
    move: Move | None = None
    shape: Shape = None
    dtype: str | None = None


@dataclass
class Op:
    """An ONNX node about to be translated."""

    proto: NodeProto
    opset: int
    types: Types
    scope: Scope
    consts: dict[str, Const]
    nodes: dict[str, Node]
    reads: dict[str, int]
    prefix: str = ""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """What is known of values that look like constants and are none."""
    extra: list[Node] = field(default_factory=list)
    """Neutral nodes made on the way, to stand in front of the one that is returned."""
    merged: list[Node] = field(default_factory=list)
    """Neutral nodes that the one that is returned replaces."""

    @cached_property
    def attrs(self) -> dict[str, Any]:
        graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        plain = NodeProto(attribute=[a for a in self.proto.attribute if a.type not in graphs])
        return attributes(plain)

    @property
    def where(self) -> str:
        """The place a person knows: where torch's exporter says the node is from, or the node's name."""
        own = self.proto.name or f"{self.proto.op_type}:{made_by(self.proto)}"
        return self.prefix + (".".join(part for part in self.scopes if part) or own)

    @cached_property
    def scopes(self) -> tuple[str, str]:
        """(path of the module, name of the call) as torch's exporter notes them; empty without a note."""
        note = next((p.value for p in self.proto.metadata_props if p.key == TORCH_SCOPES), "")
        names = note.strip("[]").replace("'", "").split(", ")
        return (names[-2], names[-1]) if len(names) > 1 else ("", "")

    def module(self, *ports: int) -> str:
        """The path of the layer that the node is, by the exporter's note or its parameters' names."""
        named = (module_name(self.name(port)) for port in ports)
        found = self.scopes[0] or next(filter(None, named), "")
        return self.prefix + found if found else self.where

    def name(self, port: int) -> str:
        return self.proto.input[port] if port < len(self.proto.input) else ""

    def const(self, port: int) -> Const | None:
        return self.consts.get(self.name(port))

    def list(self, attribute: str, port: int) -> list[Any] | None:
        """A list that is an attribute in old opsets and a constant input in new ones; None when neither."""
        return list(self.attrs[attribute]) if attribute in self.attrs else list_of(self.const(port))

    def origin_of(self, port: int) -> str:
        """Where the value at a port comes from that is no constant, as the end of a sentence."""
        return self.unknown.get(self.name(port), "is computed in the graph")

    def given(self, port: int) -> bool:
        return bool(self.name(port))

    def shape(self, port: int) -> Shape:
        return self.types.of(self.name(port)).shape

    def rank(self, port: int = 0) -> int | None:
        return self.types.rank(self.name(port))

    def out_shape(self, port: int = 0) -> Shape:
        return self.types.of(self.proto.output[port]).shape

    def used(self, port: int) -> bool:
        """Whether anything reads output `port`."""
        return port < len(self.proto.output) and self.reads.get(self.proto.output[port], 0) > 0

    def dtype(self, name: str) -> str | None:
        number = self.types.of(name).elem_type
        return name_of(number) if number else None

    def value(self, port: int) -> Node:
        """The neutral node of an input; a constant becomes an operand of its own."""
        name = self.name(port)
        return self.nodes[name] if name in self.nodes else self._operand(port)

    def _operand(self, port: int) -> Node:
        const = self.consts[self.name(port)]
        origin = Origin(self.proto, self.scope, {"value": self.slot(port)}, shape=const.shape)
        name, reader = f"{self.name(port)}@{self.proto.output[0]}", self.proto.output[0]
        owner = (self.scope, self.name(port), reader, port)
        node = Node(name, "constant", owner=owner, where=self.prefix + self.name(port), origin=origin)
        if is_float(const):
            node.kind, node.params = "parameter", {"value": self.param("value", port)}
        self.extra.append(node)
        return node

    def param(self, name: str, port: int, effective: Callable[[Array], Array] | None = None) -> Param:
        """The constant at input `port` as a parameter. `effective` is what the node really computes with.

        Its key is its own: an edit gives the node a new tensor and never writes one that others read.
        """
        const = self.consts[self.name(port)]
        shape = const.shape if effective is None else effective(np.zeros(const.shape)).shape

        def fetch() -> Array:
            values = as_float64(const)
            return values if effective is None else effective(values)

        key = (self.scope, self.proto.output[0], port)
        dtype = name_of(const.data_type)
        return Param(self.name(port) or name, key, shape, dtype, fetch, source=const.source)

    def slot(self, port: int, times: float = 1.0) -> Slot:
        return Slot(self.proto, port, self.const(port), times)

    def node(self, kind: str, *inputs: Node, port: int = 0, **attrs: Any) -> Node:
        """The neutral node of output `port`."""
        out = self.proto.output[port] if self.proto.output else ""
        typed = self.types.of(out)
        origin = Origin(self.proto, self.scope, shape=typed.shape, dtype=self.dtype(out))
        return Node(out, kind, inputs, attrs, owner=(self.scope, out), where=self.where, origin=origin)

    def with_params(self, node: Node, **ports: int) -> Node:
        """`node` with the constants at these input ports as its parameters."""
        for name, port in ports.items():
            if self.const(port) is not None:
                node.params[name] = self.param(name, port)
                node.origin.slots[name] = self.slot(port)
        return node


def made_by(proto: NodeProto) -> str:
    """The first value that a node makes: it may leave the first of its outputs out, or have none."""
    return next(filter(None, proto.output), "")


def module_name(parameter: str) -> str:
    """`layer1.0.bn1.running_mean` -> `layer1.0.bn1`; empty where the name is not of that form."""
    head, _, leaf = parameter.rpartition(".")
    return head if leaf in ("weight", "bias", "running_mean", "running_var", "gamma", "beta") else ""
