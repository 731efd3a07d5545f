"""Sizes and element types of all values, with a concrete size for every dimension the model leaves open."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from bntool.graphs.onnx_open import input_shape, is_fixed, open_sizes

Sizes = tuple[int, ...] | None


@dataclass(frozen=True)
class Typed:
    """What is known of a value. `elem_type` is ONNX's number, 0 when unknown."""

    shape: Sizes = None
    elem_type: int = 0


@dataclass
class Types:
    """The types of one graph's values, by name; `inner` those of its nodes' subgraphs."""

    values: dict[str, Typed] = field(default_factory=dict)
    graph: GraphProto | None = None
    static: bool = False
    """Whether every size is the model's own and none stands for an open one: then a Shape is a constant."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """How many dimensions values have, also where their sizes are not known."""

    def of(self, name: str) -> Typed:
        return self.values.get(name, Typed())

    def rank(self, name: str) -> int | None:
        shape = self.of(name).shape
        return self.ranks.get(name) if shape is None else len(shape)


def infer(model: ModelProto, sizes: Mapping[str, int], known: Iterable[ValueInfoProto] = ()) -> ModelProto:
    """A copy of the model with concrete shapes wherever inference finds them; weights are not read.

    `known` are types of values that nodes make, to infer others from.
    """
    bound = ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        shape = input_shape(value, sizes)
        if shape:
            _set_shape(value, shape)
    kept = [v for v in bound.graph.value_info if _bind(v, sizes)]
    del bound.graph.value_info[:]
    types = {value.name: value for value in known}
    bound.graph.value_info.extend(types.values())
    made = {name for node in bound.graph.node for name in node.output}
    for place, value in reversed(list(enumerate(bound.graph.output))):
        if value.name in types:
            value.CopyFrom(types[value.name])
        elif value.name in made:
            value.type.tensor_type.ClearField("shape")
        else:  # an input or a tensor that is handed out: what is said of it there counts
            del bound.graph.output[place]
    try:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except Exception:  # inference is a help, never a condition: unknown sizes only block a fold
        inferred = bound
    found = {v.name for v in inferred.graph.value_info if _complete(v)}
    inferred.graph.value_info.extend(v for v in kept if v.name not in found)
    return inferred


_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def size_of(dim: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a symbolic dimension as torch writes them: `batch`, `64*batch`, `(s77//2) + 1`."""
    try:
        return _evaluate(ast.parse(dim, mode="eval").body, sizes)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def _evaluate(node: ast.AST, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_evaluate(node.left, sizes), _evaluate(node.right, sizes))
    raise KeyError(ast.dump(node))


def infer_inner(model: ModelProto, graph: GraphProto, outside: Mapping[str, Typed]) -> ModelProto:
    """The same for a subgraph by itself: what it takes `outside` counts as its input."""
    alone = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    known = {name: typed for name, typed in outside.items() if typed.elem_type}
    made = (onnx.helper.make_tensor_value_info(n, t.elem_type, t.shape) for n, t in known.items())
    alone.graph.input.extend(made)
    return infer(alone, open_sizes(alone, {}))


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    del value.type.tensor_type.shape.dim[:]
    for size in shape:
        value.type.tensor_type.shape.dim.add(dim_value=size)


def _bind(value: ValueInfoProto, sizes: Mapping[str, int]) -> bool:
    """Put concrete sizes in; False where one is not known."""
    for dim in value.type.tensor_type.shape.dim:
        size = size_of(dim.dim_param, sizes) if dim.dim_param else None
        if size is not None:
            dim.dim_value = size
    return _complete(value)


def _complete(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(map(is_fixed, tensor.shape.dim))


def unsized(graph: GraphProto) -> int:
    """How many of the values that nodes make have sizes that inference has not found."""
    known = {value.name for value in (*graph.value_info, *graph.output) if _complete(value)}
    return sum(name not in known for node in graph.node for name in node.output if name)


#: operators that shape inference does not know, whose result is of their first input's type
SAME_TYPE = {
    "": frozenset(("GroupNormalization",)),
    "com.microsoft": frozenset(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "GroupNorm")),
}


def told(graph: GraphProto) -> list[ValueInfoProto]:
    """Types that inference itself did not find: of what `SAME_TYPE` names, and what the model says of others.

    `graph` has been through `infer`; so has all that follows from this after `infer` with it.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value for value in values if _complete(value)}
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        same = node.op_type in SAME_TYPE.get(domain, ()) and node.input[0] in types
        if same and node.output[0] not in types:
            made = ValueInfoProto()
            made.CopyFrom(types[node.input[0]])
            made.name = node.output[0]
            types[made.name] = made
    own = {name for node in graph.node for name in node.output}
    return [value for name, value in types.items() if name in own]


def is_static(model: ModelProto) -> bool:
    """Whether the sizes of all inputs are fixed."""
    return all(_complete(value) for value in model.graph.input)


def types_of(graph: GraphProto, *, static: bool = False) -> Types:
    """The types of a graph's own values after `infer`."""
    types = Types(graph=graph, static=static)
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim) if _complete(value) else None
        types.values[value.name] = Typed(shape, tensor.elem_type)
    for tensor in graph.initializer:
        types.values[tensor.name] = Typed(tuple(tensor.dims), tensor.data_type)
    return types
