"""How many dimensions values have whose sizes are not known: as many as the layers beside them must have.

Shape inference goes no further than an operator it does not know; but what a Conv gives out has as many
dimensions as its weight, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, NodeProto

from bntool.graphs.onnx_shapes import Types

#: operators whose result has the dimensions of their first input
SAME = frozenset(
    (
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "Mish", "Swish"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
        *("Abs", "Ceil", "Clip", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sign"),
        *("Sin", "Sqrt", "Tan", "Identity", "Cast", "CastLike", "Dropout", "Pad", "Resize", "Upsample"),
        *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LRN"),
        *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    )
)
#: operators whose result has the dimensions of the input that has the most
BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where"))
CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = (*CONVOLUTIONS, "Gemm")


def ranks_of(graph: GraphProto, types: Types, outside: Mapping[str, int]) -> dict[str, int]:
    """Name -> number of dimensions, for every value of the graph of which that can be told.

    `outside`: the same of the graphs around it.
    """
    ranks = {**outside}
    ranks |= {name: len(typed.shape) for name, typed in types.values.items() if typed.shape is not None}
    ranks.update(_partial(types.graph or graph))
    for node in graph.node:
        _give(ranks, node.output[0] if node.output else "", _made(node, ranks))
    for node in reversed(graph.node):
        if node.input:
            _give(ranks, node.input[0], _read(node, ranks))
    return ranks


def _give(ranks: dict[str, int], name: str, rank: int | None) -> None:
    if name and rank:
        ranks.setdefault(name, rank)


def _partial(graph: GraphProto) -> Iterator[tuple[str, int]]:
    """Where inference found the number of dimensions and not all their sizes."""
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            yield value.name, len(dims)


def _of_layer(node: NodeProto, ranks: dict[str, int]) -> int | None:
    """What a layer with a weight is given has, and what it makes."""
    return 2 if node.op_type == "Gemm" else ranks.get(node.input[1])


def _made(node: NodeProto, ranks: dict[str, int]) -> int | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in LAYERS:
        return _of_layer(node, ranks)
    if node.op_type == "Gather":
        return _looked_up(node, ranks)
    given = [ranks.get(name) for name in node.input]
    if node.op_type in SAME:
        return given[0]
    known = [rank for rank in given if rank is not None]
    return max(known) if node.op_type in BROADCAST and known and len(known) == len(given) else None


def _looked_up(node: NodeProto, ranks: dict[str, int]) -> int | None:
    table, places = (ranks.get(name) for name in node.input)
    return None if table is None or places is None else table - 1 + places


def _read(node: NodeProto, ranks: dict[str, int]) -> int | None:
    """What the first input must have."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in LAYERS:
        return _of_layer(node, ranks)
    return ranks.get(node.output[0]) if node.op_type in SAME else None
