"""Sizes and element types of all values, with a concrete size for every dimension the model leaves open."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

#: the size a dynamic dimension stands for: the first dimension (a batch), images, and anything else
BATCH, SPATIAL, LENGTH = 2, 96, 16

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

    def of(self, name: str) -> Typed:
        return self.values.get(name, Typed())


def open_sizes(model: ModelProto, given: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """Every open dimension of the inputs -> the size it stands for; `given` input shapes come first."""
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = list(given.get(value.name, ()))
        for place, dim in enumerate(dims):
            known = shape[place] if place < len(shape) else None
            if not dim.HasField("dim_value"):
                sizes.setdefault(_name(value, place), known or _stand_in(place, len(dims)))
    return sizes


def open_names(value: ValueInfoProto) -> list[str]:
    """What the open dimensions of an input are called in `open_sizes`."""
    dims = value.type.tensor_type.shape.dim
    return [_name(value, place) for place, dim in enumerate(dims) if not dim.HasField("dim_value")]


def batch_names(inputs: Iterable[ValueInfoProto]) -> set[str]:
    """Of the open dimensions those that are the first of an input."""
    firsts = (v for v in inputs if v.type.tensor_type.shape.dim)
    return {_name(v, 0) for v in firsts if not v.type.tensor_type.shape.dim[0].HasField("dim_value")}


def _name(value: ValueInfoProto, place: int) -> str:
    """A dimension without a name is called after its place."""
    return value.type.tensor_type.shape.dim[place].dim_param or f"{value.name}[{place}]"


def _stand_in(place: int, rank: int) -> int:
    if place == 0:
        return BATCH
    return SPATIAL if rank == 4 and place >= 2 else LENGTH


def caller_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller has to give: old files list their initialisers among the inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def input_shape(value: ValueInfoProto, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A concrete shape for a graph input."""
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value")
        else sizes.get(_name(value, place), _stand_in(place, len(dims)))
        for place, dim in enumerate(dims)
    )


def infer(model: ModelProto, sizes: Mapping[str, int]) -> ModelProto:
    """A copy of the model with concrete shapes wherever inference finds them; weights are not read."""
    bound = ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        if value.type.tensor_type.HasField("shape") and value.type.tensor_type.shape.dim:
            _set_shape(value, input_shape(value, sizes))
    kept = [v for v in bound.graph.value_info if _bind(v, sizes)]
    del bound.graph.value_info[:]
    made = {name for node in bound.graph.node for name in node.output}
    for place, value in reversed(list(enumerate(bound.graph.output))):
        if value.name in made:
            value.type.tensor_type.ClearField("shape")
        else:  # an input or a tensor that is handed out: what is said of it there counts
            del bound.graph.output[place]
    try:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except Exception:  # inference is a help, never a condition: unknown sizes only block a fold
        inferred = bound
    known = {v.name for v in inferred.graph.value_info if _complete(v)}
    inferred.graph.value_info.extend(v for v in kept if v.name not in known)
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
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size


def _bind(value: ValueInfoProto, sizes: Mapping[str, int]) -> bool:
    """Put concrete sizes in; False where one is not known."""
    for dim in value.type.tensor_type.shape.dim:
        size = size_of(dim.dim_param, sizes) if dim.dim_param else None
        if size is not None:
            dim.dim_value = size
    return _complete(value)


def _complete(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def unsized(graph: GraphProto) -> int:
    """How many of the values that nodes make have sizes that inference has not found."""
    known = {value.name for value in (*graph.value_info, *graph.output) if _complete(value)}
    return sum(name not in known for node in graph.node for name in node.output if name)


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
