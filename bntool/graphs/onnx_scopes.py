"""Subgraphs whose names hide names of the graphs around them, which the format allows, get other names.

Everything else may then take a name for one value wherever it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

#: the way to a graph: of every subgraph around it the value that its node makes, and the attribute it is.
#: (No text: a value may be called what two of them put together would be.)
Scope = tuple[str, ...]


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}.{number}", graph


def own_names(graph: GraphProto) -> set[str]:
    """The values that the graph itself has: what it is given, what it stores and what its nodes make."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    names.update(name for node in graph.node for name in node.output if name)
    return names


def unshadowed(model: ModelProto) -> ModelProto:
    """The model; a copy with new names in its subgraphs where they have one that is taken outside."""
    if not any(_shadows(graph, own_names(model.graph)) for graph in _inner(model.graph)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph, {}, set(), {name for graph in _all(copy.graph) for name in own_names(graph)})
    return copy


def _inner(graph: GraphProto) -> Iterator[GraphProto]:
    for node in graph.node:
        yield from (inner for _, inner in subgraphs(node))


def _all(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for inner in _inner(graph):
        yield from _all(inner)


def _shadows(graph: GraphProto, outside: set[str]) -> bool:
    own = own_names(graph)
    return bool(own & outside) or any(_shadows(inner, own | outside) for inner in _inner(graph))


def _rename(graph: GraphProto, renamed: Mapping[str, str], outside: set[str], taken: set[str]) -> None:
    """`renamed`: what names that the graph reads from outside are now. `taken` are all names of the model."""
    own = own_names(graph)
    new = {name: _fresh(name, taken) if name in outside else name for name in sorted(own)}
    names = {**renamed, **new}
    for value in (*graph.input, *graph.initializer, *graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names[sparse.values.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for _, inner in subgraphs(node):
            _rename(inner, names, outside | own, taken)


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"
