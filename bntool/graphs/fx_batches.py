"""Does data movement take other parts of other batches? `torch.cat([x, y])[2:]` is `y` for a batch of two."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from bntool.graphs.fx_calls import function_name, names
from bntool.graphs.fx_kinds import PIECES
from bntool.graphs.fx_sizes import UNKNOWN, Inputs, Sizes, rebatched

CONCATS = names("cat concat concatenate")
#: what may leave some of its input out
CUTS = names("getitem select narrow index_select unfold diagonal") | set(PIECES)
#: values are worked out for batches up to this
MOST = 64


def batches_apart(
    root: nn.Module,
    ways: Sequence[tuple[fx.Graph, Sizes]],
    inputs: Inputs | None,
    *,
    near_too: bool = False,
) -> list[Inputs]:
    """`inputs` as they would be for batches of which a way (a graph, with its sizes) takes other parts.

    Those are looked at that have one item or one more (in any case, if they are to be there `near_too`),
    and so many that of every example something is left.
    """

    def apart(other: Sizes) -> bool:
        return any(_differs(graph, here, other) for graph, here in ways)

    near = [(batch, Sizes(root, batch)) for batch in rebatched(inputs)[:-1]]
    cuts = {n for graph, here in ways for _, other in near[-1:] for n in _cuts(graph, here, other)}
    # (a share of a batch that is cut again may be another one for any batch in between)
    most = min(MOST, 4 * max(cuts, default=0) + 8)
    enough = [*range(2, most), *(n + 1 for n in sorted(cuts) if most <= n < MOST)] if cuts else []
    far = [(batch, Sizes(root, batch)) for batch in rebatched(inputs, *enough)[len(near) : -1]]
    found = [batch for batch, other in near if near_too or apart(other)]
    return found + [batch for batch, other in far if apart(other)]


def _differs(graph: fx.Graph, here: Sizes, other: Sizes) -> bool:
    """Whether for another batch, with which it runs, a graph takes or puts together other parts of values."""
    moves = [n for n in graph.nodes if function_name(n) in CUTS | CONCATS]
    return any(_parts(n, here) != _parts(n, other) for n in moves) and _runs(graph, here, other)


def _cuts(graph: fx.Graph, here: Sizes, other: Sizes) -> list[int]:
    """The numbers, counted from either end, at which a graph cuts a first dimension that is the batch's."""
    cuts = [n for n in graph.nodes if function_name(n) in CUTS and n.all_input_nodes]
    of_batch = [n for n in cuts if _first(n, here) != _first(n, other)]
    return [number for node in of_batch for number in _cut_at(node)]


def _first(node: fx.Node, sizes: Sizes) -> int | None:
    """The first size of what a call reads."""
    value = sizes.value(node.all_input_nodes[0])
    return value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else None


def _cut_at(node: fx.Node) -> list[int]:
    """The numbers among its arguments, if it cuts the first dimension."""
    name, given = function_name(node), [*node.args[1:], *node.kwargs.values()]
    if name == "getitem":
        first = given[0][0] if isinstance(given[0], tuple) and given[0] else given[0]
        given = [first.start, first.stop] if isinstance(first, slice) else [first]
    elif node.kwargs.get("dim", 0 if name in PIECES else given[0] if given else 0) != 0:
        return []
    flat = [n for value in given for n in (value if isinstance(value, (list, tuple)) else [value])]
    return [abs(n) for n in flat if type(n) is int]


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
        if not isinstance(dim, int):
            return None
        return [v.shape[dim] for v in given if isinstance(v, torch.Tensor) and v.ndim == made.ndim]
    return [Fraction(p.numel(), max(1, given[0].numel())) for p in pieces]
