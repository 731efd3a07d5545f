"""Does data movement take other parts of other batches? `torch.cat([x, y])[2:]` is `y` for a batch of two."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import fx

from bntool.graphs.fx_calls import function_name, names
from bntool.graphs.fx_kinds import PIECES
from bntool.graphs.fx_sizes import UNKNOWN, Sizes

CONCATS = names("cat concat concatenate")
#: what may leave some of its input out
CUTS = names("getitem select narrow index_select unfold diagonal") | set(PIECES)


def differs(graph: fx.Graph, here: Sizes, other: Sizes) -> bool:
    """Whether for another batch, with which it runs, a graph takes or puts together other parts of values."""
    moves = [n for n in graph.nodes if function_name(n) in CUTS | CONCATS]
    return any(_parts(n, here) != _parts(n, other) for n in moves) and _runs(graph, here, other)


def _runs(graph: fx.Graph, here: Sizes, other: Sizes) -> bool:
    """Whether all that is known of the values is known for the other batch."""
    return not any(other.value(n) is UNKNOWN and here.value(n) is not UNKNOWN for n in graph.nodes)


def _parts(node: fx.Node, sizes: Sizes) -> Any:
    """What share of its input each piece is; the lengths of what is concatenated."""
    given, made = [sizes.value(n) for n in node.all_input_nodes], sizes.value(node)
    pieces = made if isinstance(made, (tuple, list)) else [made]
    if not given or not all(isinstance(v, torch.Tensor) for v in (given[0], *pieces)):
        return None
    if function_name(node) in CONCATS:
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        return [v.shape[dim] for v in given if isinstance(v, torch.Tensor) and v.ndim == made.ndim]
    return [Fraction(p.numel(), max(1, given[0].numel())) for p in pieces]
