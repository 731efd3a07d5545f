"""Biases that have no effect in training: a norm that takes the batch's mean out is all that they reach.

A bias is a shift of its layer's output, constant per channel. Followed down through what a shift passes, with
the rules by which folding moves maps, it must end in such norms everywhere, per channel of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from bntool.algebra.absorbing import channel_map
from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.linear import LINEAR
from bntool.algebra.passing import PASSING
from bntool.algebra.rules import Down, Stay
from bntool.changes import Constants
from bntool.graphs.base import Node
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.islands import module_graph
from bntool.node_site import NodeSite
from bntool.norms.submodules import modes_kept
from bntool.search import place


@dataclass(frozen=True)
class HiddenBias:
    """`layer` is where a person finds it, `bias` the parameter's name; `norm` takes it out again."""

    layer: str
    bias: str
    norm: str


def hidden_biases(model: nn.Module, inputs: Inputs | None) -> list[HiddenBias]:
    """All of them, as the model trains: in train mode, or, if it is, with the parts of it in the modes
    they are in. The model is left as it was.
    """
    with modes_kept(model):
        if not model.training:
            model.train()
        graph = module_graph(model, inputs, as_given=True)
    biases = {n.params["bias"].key: n for n in graph.nodes if n.kind in LINEAR and "bias" in n.params}
    return [hidden for key, node in biases.items() for hidden in _hidden(graph, node, graph.readers(key))]


def _hidden(graph: FxGraph, node: Node, readers: Sequence[Node]) -> Iterator[HiddenBias]:
    """One entry if the bias of `node` reaches nothing but norms, from all layers that use it."""
    norms: list[str] = []
    for reader in readers:
        ends = _ends(graph, reader)
        if not ends:
            return
        norms += ends
    yield HiddenBias(place(node), node.params["bias"].name, norms[0])


def _ends(graph: FxGraph, node: Node) -> list[str]:
    """The norms that take a layer's bias out; none where something else sees it."""
    if node.kind not in LINEAR or not node.users or "bias" not in node.params:
        return []
    todo, ends = [(node, _shift(node))], list[str]()
    while todo:
        value, shift = todo.pop(0)
        if value.watched or value.changed_by:
            return []
        for reader, port in value.users:
            if _takes_it_out(graph, reader, shift):
                ends.append(place(reader))
                continue
            further = _passed(graph, reader, port, shift)
            if further is None:
                return []
            todo += [(reader, further)] if further.shifts else []
    return ends


def _shift(node: Node) -> ChannelAffine:
    """A bias on the layer's output. (Of other values in every channel, lest any look alike by chance.)"""
    (channels,) = node.params["bias"].shape
    shift = ChannelAffine(np.ones(channels), np.arange(1.0, channels + 1))
    axis = LINEAR[node.kind].axis(node.attrs)
    return ChannelAffine.along(shift, 0, -axis)


def _takes_it_out(graph: FxGraph, norm: Node, shift: ChannelAffine) -> bool:
    if norm.kind != "batch_norm" or not norm.attrs["training"]:
        return False
    rank = norm.attrs.get("rank") or len(shift.shape) + 1
    channels = next((p.shape[0] for p in norm.params.values()), 0)
    sizes = graph.shape(norm.inputs[0])
    form = channel_map(shift, 1 - rank, channels or (sizes[1] if sizes else 0))
    return not isinstance(form, Blocked)


def _passed(graph: FxGraph, node: Node, port: int, shift: ChannelAffine) -> ChannelAffine | None:
    """What becomes of the shift behind a node; None where it becomes anything else."""
    if node.kind not in PASSING:
        return None
    ways = PASSING[node.kind].down(NodeSite(graph, node, Constants(graph, {})), port, shift)
    tasks = [] if isinstance(ways, Blocked) else ways[0]
    maps = [task.map for task in tasks if isinstance(task, Down)]
    others = any(not isinstance(task, Down | Stay) for task in tasks)
    return maps[0] if len(maps) == 1 and not others and not maps[0].scales else None
