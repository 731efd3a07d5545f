"""An ONNX model at other sizes of its open dimensions: what a norm's map becomes may depend on them.

`Reshape([-1, 64])` of (batch, 4, L) gives every row 4 channels where L is 16, and 2 where it is 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import ModelProto, ValueInfoProto

from bntool.agreed import OTHER_BATCHES
from bntool.graphs.base import Node
from bntool.graphs.onnx_constants import attributes
from bntool.graphs.onnx_ir import OnnxGraph, origin, read
from bntool.graphs.onnx_open import (
    SPATIAL,
    batch_names,
    caller_inputs,
    input_shape,
    open_names,
    open_sizes,
    said_by_layers,
)
from bntool.graphs.onnx_scopes import Scope

Shapes = Mapping[str, Iterable[int]]
OTHER_SIZES = "its map would have to go elsewhere for other sizes than those assumed (--input gives yours)"
#: operators that move whole dimensions
WHOLE = ("Transpose", "Squeeze", "Unsqueeze")
#: the second size of an image; any other size is doubled, which leaves it divisible by what it was
LARGER = {SPATIAL: 128}


def larger(model: ModelProto, given: Shapes) -> dict[str, int] | None:
    """Sizes of the open dimensions, larger where nobody gave them, but for batches; None if none would be."""
    sizes, inputs = open_sizes(model, given), caller_inputs(model)
    said = {name for value in inputs if value.name in given for name in _names(value, given)}
    free = sizes.keys() - said - batch_names(inputs) - said_by_layers(model).keys()
    return {**sizes, **{n: LARGER.get(sizes[n], 2 * sizes[n]) for n in free}} if free else None


def _names(value: ValueInfoProto, given: Shapes) -> Iterable[str]:
    return open_names(value, tuple(given[value.name])).values()


def other_graphs(graph: OnnxGraph, given: Shapes) -> Iterator[tuple[OnnxGraph, str]]:
    """The model of `graph` for twice the batch and for larger sizes, where those are open.

    For the sizes of which the user said something it is folded as it is for them, and for any batch. Where
    nothing but whole dimensions is moved there is nothing to compare.
    """
    if all(map(_keeps_dimensions, graph.nodes)):
        return
    model, inputs = graph.model, caller_inputs(graph.model)
    sizes = open_sizes(model, given)
    batches = {name: 2 * sizes[name] for name in batch_names(inputs)}
    for other, reason in (({**sizes, **batches}, OTHER_BATCHES), (larger(model, given), OTHER_SIZES)):
        if other is not None and other != sizes:
            shapes = {value.name: input_shape(value, other) for value in inputs}
            found = _comparable(graph, read(model, graph.store, shapes), given)
            if found is not None:
                yield found, reason


def _keeps_dimensions(node: Node) -> bool:
    """Whether a node moves no values, or does it alike whatever the sizes are."""
    if node.kind != "layout":
        return True
    proto = origin(node).proto
    from_channels = proto.op_type == "Flatten" and attributes(proto).get("axis", 1) == 1
    return from_channels or proto.op_type in WHOLE


def _comparable(here: OnnxGraph, there: OnnxGraph, given: Shapes) -> OnnxGraph | None:
    """`there` if it runs; if data movement that fits `here` does not fit there, `here` with that unknown.

    None where it does not run for another reason: then it is for the sizes of `here` alone.
    """
    sized = {_place(node) for node in _values(here) if here.shape(node) is not None}
    lost = [node for node in _values(there) if there.shape(node) is None and _place(node) in sized]
    if not lost:
        return there
    broken = {_place(n) for n in lost if n.kind == "layout" and there.shape(n.inputs[0]) is not None}
    if not broken:
        return None
    blind = read(here.model, here.store, given)
    for node in _values(blind):
        if _place(node) in broken:
            origin(node).move = None
    return blind


def _values(graph: OnnxGraph) -> list[Node]:
    return [node for node in graph.nodes if node.kind != "output"]


def _place(node: Node) -> tuple[Scope, str]:
    return origin(node).scope, node.name
