"""Dimensions that a model leaves open: what they are called, and the sizes they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, takewhile

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorShapeProto, ValueInfoProto

#: the size a dynamic dimension stands for: the first dimension (a batch), images, and anything else
BATCH, SPATIAL, LENGTH = 2, 96, 16

Dims = Sequence[TensorShapeProto.Dimension]


def open_sizes(model: ModelProto, given: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """Every open dimension of the inputs -> the size it stands for.

    The `given` input shapes come first, then what the layers say.
    """
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        shape = tuple(given.get(value.name, ()))
        names = open_names(value, shape)
        for place, size in enumerate(shape):
            if place in names:
                sizes.setdefault(names[place], size)
    sizes = {**said_by_layers(model), **sizes}
    for value in model.graph.input:
        for place, name in open_names(value).items():
            sizes.setdefault(name, _stand_in(place, len(value.type.tensor_type.shape.dim)))
    return sizes


def open_names(value: ValueInfoProto, given: Sequence[int] = ()) -> dict[int, str]:
    """What the open dimensions of an input are called in `open_sizes`, by place.

    Where the model says nothing of its shape they are those of the `given` one.
    """
    if no_shape(value):
        return {place: _name(value, place) for place in range(len(given))}
    dims = enumerate(value.type.tensor_type.shape.dim)
    return {place: dim.dim_param or _name(value, place) for place, dim in dims if not is_fixed(dim)}


def batch_names(inputs: Iterable[ValueInfoProto]) -> set[str]:
    """Of the open dimensions those that are the first of an input."""
    return {names[0] for names in map(open_names, inputs) if 0 in names}


def _name(value: ValueInfoProto, place: int) -> str:
    """A dimension without a name is called after its place."""
    return f"{value.name}[{place}]"


def no_shape(value: ValueInfoProto) -> bool:
    return not value.type.tensor_type.HasField("shape")


def is_fixed(dim: TensorShapeProto.Dimension) -> bool:
    """Some exporters write -1 where a size is open."""
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


def _stand_in(place: int, rank: int) -> int:
    if place == 0:
        return BATCH
    return SPATIAL if rank == 4 and place >= 2 else LENGTH


def caller_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller has to give: old files list their initialisers among the inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def input_shape(value: ValueInfoProto, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A concrete shape for a graph input; () also where nothing is known of it."""
    dims, names = value.type.tensor_type.shape.dim, open_names(value)
    if no_shape(value):
        return tuple(takewhile(bool, (sizes.get(_name(value, place), 0) for place in count())))
    return tuple(
        sizes.get(names[place], _stand_in(place, len(dims))) if place in names else dim.dim_value
        for place, dim in enumerate(dims)
    )


def said_by_layers(model: ModelProto) -> dict[str, int]:
    """The open dimensions that meet fixed ones: the channels of a layer or norm, and of what is added."""
    named = ModelProto()
    named.CopyFrom(model)
    names = {name for value in named.graph.input if not no_shape(value) for name in _named(value)}
    if not names - batch_names(model.graph.input):
        return {}
    del named.graph.value_info[:]
    for value in named.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(named, data_prop=True).graph
    except Exception:  # a help, never a condition
        return {}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in _values(graph)}
    shapes |= {t.name: [TensorShapeProto.Dimension(dim_value=n) for n in t.dims] for t in graph.initializer}
    said = (found for node in graph.node for found in _said(node, shapes))
    return {name: size for name, size in said if name in names and size > 0}


def _named(value: ValueInfoProto) -> Iterator[str]:
    """The names of its open dimensions, which it has from now on."""
    for place, name in open_names(value).items():
        value.type.tensor_type.shape.dim[place].dim_param = name
        yield name


def _values(graph: GraphProto) -> Iterable[ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)


def _said(node: NodeProto, shapes: Mapping[str, Dims]) -> Iterator[tuple[str, int]]:
    """The name of a dimension of one of the first two inputs, and how long it is by the other one."""
    if len(node.input) < 2 or node.domain not in ("", "ai.onnx"):
        return
    attrs = {attribute.name: attribute.i for attribute in node.attribute}
    x, weight = (shapes.get(name, ()) for name in node.input[:2])
    pairs = [MEET[node.op_type](attrs)] if node.op_type in MEET else []
    if node.op_type in ELEMENTWISE:  # what has size 1 is repeated
        places = range(-min(len(x), len(weight)), 0)
        pairs = [(d, d) for d in places if 1 not in (x[d].dim_value, weight[d].dim_value)]
    times = attrs.get("group", 1) if node.op_type == "Conv" else 1
    for mine, other in pairs:
        if all(-len(dims) <= place < len(dims) for dims, place in ((x, mine), (weight, other))):
            yield x[mine].dim_param, weight[other].dim_value * times
            yield weight[other].dim_param, x[mine].dim_value


ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "PRelu")
#: attributes of an operator -> which dimension of its first input is as long as which one of its second
MEET: dict[str, Callable[[Mapping[str, int]], tuple[int, int]]] = {
    "Conv": lambda attrs: (1, 1),
    "ConvTranspose": lambda attrs: (1, 0),
    "BatchNormalization": lambda attrs: (1, 0),
    "InstanceNormalization": lambda attrs: (1, 0),
    "MatMul": lambda attrs: (-1, -2),
    "Gemm": lambda attrs: (0 if attrs.get("transA") else 1, 1 if attrs.get("transB") else 0),
}
