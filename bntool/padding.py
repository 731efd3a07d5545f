"""A norm before zero padding, exactly: it moves behind the padding, whose zeros become other values.

    conv(pad_0(s * x + t)) = conv(s * pad_v(x) + t)   with v = -t / s for each channel

The convolution on the right pads no more, so a fold can take the norm into it. One padding takes the place of
one norm: as many passes over the data, no fewer. Graph form only: modules have no place for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from bntool.algebra.affine import ChannelAffine
from bntool.graphs.base import Node
from bntool.graphs.fx_graph_form import CONVS, free_name
from bntool.graphs.fx_modules import FxGraph
from bntool.norms.value_pad import value_pad
from bntool.plan import Norm, Plan, make_plan

Widths = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Move:
    """`norm`, called once, feeds nothing but convolutions that all pad with `widths` zeros."""

    norm: Norm
    convs: tuple[Node, ...]
    widths: Widths
    values: torch.Tensor


def move_padding(module: fx.GraphModule, graph: FxGraph, keep: Sequence[str]) -> list[str]:
    """Moves, in place, every padding behind which a norm can then fold; the names of these norms."""
    moves = _worthwhile(graph, keep, [m for m in _possible(module, graph, keep) if m is not None])
    for move in moves:
        _carry_out(module, move)
    module.graph.lint()
    module.recompile()
    return [move.norm.names[0] for move in moves]


def _possible(module: fx.GraphModule, graph: FxGraph, keep: Sequence[str]) -> list[Move | None]:
    plan = make_plan(graph, keep=keep)
    return [_move_of(module, graph, norm) for norm, _ in plan.kept]


def _move_of(module: fx.GraphModule, graph: FxGraph, norm: Norm) -> Move | None:
    call, convs = norm.calls[0], tuple(reader for reader, _ in norm.calls[0].users)
    if len(norm.calls) > 1 or call.pinned or call.watched or not isinstance(norm.map, ChannelAffine):
        return None
    widths = {_zeros_around(module, graph, conv) for conv in convs}
    values = _values(module, norm)
    if len(widths) != 1 or None in widths or values is None or _node_of(module, norm) is None:
        return None
    (around,) = widths
    return Move(norm, convs, around or (), values)


def _node_of(module: fx.GraphModule, norm: Norm) -> fx.Node | None:
    return next((n for n in module.graph.nodes if n.target == norm.names[0]), None)


def _zeros_around(module: fx.GraphModule, graph: FxGraph, node: Node) -> Widths | None:
    """How many zeros a convolution that is called once puts around its input; None where it is none."""
    if node.kind != "conv" or not node.attrs["padded"] or node.origin.op != "call_module":
        return None
    conv = module.get_submodule(str(node.origin.target))
    calls = [n for n in graph.nodes if n.owner == node.owner]
    if type(conv) not in CONVS.values() or len(calls) > 1:
        return None
    assert isinstance(conv, nn.modules.conv._ConvNd)
    flat = conv._reversed_padding_repeated_twice
    return tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))


def _values(module: fx.GraphModule, norm: Norm) -> torch.Tensor | None:
    """What the norm maps to zero, per channel; None where a channel has no such value in its dtype."""
    assert isinstance(norm.map, ChannelAffine)
    scale, shift = (torch.from_numpy(v.copy()) for v in (norm.map.scale, norm.map.shift))
    values = torch.where(shift == 0, 0.0, -shift / scale)
    mean = module.get_submodule(norm.names[0]).running_mean
    assert isinstance(mean, torch.Tensor)
    cast = values.to(mean)
    return cast if bool(cast.isfinite().all()) else None


def _worthwhile(graph: FxGraph, keep: Sequence[str], moves: list[Move]) -> list[Move]:
    """Those moves after which the planner takes the norm into the convolutions, were they not padded."""
    while moves:
        for move in moves:
            _pretend(move, padded=False)
        plan = make_plan(graph, keep=keep)
        for move in moves:
            _pretend(move, padded=True)
        good = [move for move in moves if _goes_down(plan, move)]
        if len(good) == len(moves):
            break
        moves = good
    return moves


def _pretend(move: Move, *, padded: bool) -> None:
    for conv in move.convs:
        conv.attrs["padded"] = padded


def _goes_down(plan: Plan, move: Move) -> bool:
    absorbed = [a for step in plan.steps if step.norm.owner == move.norm.owner for a in step.absorbed]
    return bool(absorbed) and all(a.side == "before" and a.node in move.convs for a in absorbed)


def _carry_out(module: fx.GraphModule, move: Move) -> None:
    norm = _node_of(module, move.norm)
    assert norm is not None
    name = free_name(module, f"{norm.name}_pad")
    module.add_submodule(name, value_pad(move.values, move.widths).eval())
    (x,) = norm.all_input_nodes
    with module.graph.inserting_before(norm):
        pad = module.graph.call_module(name, (x,))
    norm.replace_input_with(x, pad)
    for node in move.convs:
        conv = module.get_submodule(str(node.origin.target))
        assert isinstance(conv, nn.modules.conv._ConvNd)
        conv.padding = (0,) * len(move.widths)
        conv._reversed_padding_repeated_twice = [0] * (2 * len(move.widths))
