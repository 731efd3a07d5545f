"""Does data movement take other parts for other sizes? `torch.cat([x, y])[2:]` is `y` for a batch of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
#: what may have a number beside a value
ARITHMETIC = names(
    "add iadd radd sub isub subtract mul imul multiply div truediv itruediv divide true_divide"
)
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
    near = rebatched(inputs)[:-1]
    return sizes_apart(
        root, ways, near, lambda more: rebatched(inputs, *more)[len(near) : -1], near_too=near_too
    )


def sizes_apart(
    root: nn.Module,
    ways: Sequence[tuple[fx.Graph, Sizes]],
    near: Sequence[Inputs],
    resized: Callable[[Sequence[int]], list[Inputs]],
    *,
    near_too: bool = False,
) -> list[Inputs]:
    """Those of other inputs, `near` and what `resized` makes of numbers, of which a way takes other parts."""

    def apart(other: Sizes) -> bool:
        return any(_differs(graph, here, other) for graph, here in ways)

    around = [(batch, Sizes(root, batch)) for batch in near]
    cuts = {n for graph, here in ways for _, other in around for n in _cuts(graph, here, other)}
    # (a share that is cut again may be another one for any size in between)
    most = min(MOST, 4 * max(cuts, default=0) + 8)
    enough = [*range(2, most), *(n + 1 for n in sorted(cuts) if most <= n < MOST)] if cuts else []
    far = [(batch, Sizes(root, batch)) for batch in resized(enough)]
    found = [batch for batch, other in around if near_too or apart(other)]
    return found + [batch for batch, other in far if apart(other)]


def _differs(graph: fx.Graph, here: Sizes, other: Sizes) -> bool:
    """Whether for another batch, with which it runs, a graph takes or puts together other parts of values, or
    reckons with other numbers.
    """
    moves = [n for n in graph.nodes if function_name(n) in CUTS | CONCATS]
    numbers = [i for n in graph.nodes if function_name(n) in ARITHMETIC for i in _numbers(n, here)]
    moved = any(_parts(n, here) != _parts(n, other) for n in moves)
    return (moved or any(here.value(n) != other.value(n) for n in numbers)) and _runs(graph, here, other)


def _numbers(node: fx.Node, sizes: Sizes) -> list[fx.Node]:
    """The numbers that are worked out and that a value is added to or multiplied with."""
    found = [n for n in node.all_input_nodes if isinstance(sizes.value(n), (int, float))]
    return found if found and isinstance(sizes.value(node), torch.Tensor) else []


def _cuts(graph: fx.Graph, here: Sizes, other: Sizes) -> list[int]:
    """The numbers, counted from either end, at which a graph cuts dimensions that have another size there."""
    cuts = [n for n in graph.nodes if function_name(n) in CUTS and n.all_input_nodes]
    return [n for node in cuts for d in _apart(node, here, other) for n in _cut_at(node, *d)]


def _apart(node: fx.Node, here: Sizes, other: Sizes) -> Iterator[tuple[int, int]]:
    """(dimension, rank) of what a call reads, where the sizes differ."""
    a, b = (sizes.value(node.all_input_nodes[0]) for sizes in (here, other))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.ndim == b.ndim:
        yield from ((d, a.ndim) for d in range(a.ndim) if a.shape[d] != b.shape[d])
    elif isinstance(a, torch.Tensor) and a.ndim:
        yield 0, a.ndim


def _cut_at(node: fx.Node, dim: int, rank: int) -> list[int]:
    """The numbers among its arguments, if it cuts the dimension."""
    name, given = function_name(node), [*node.args[1:], *node.kwargs.values()]
    if name == "getitem":
        given = _taken(given[0], dim, rank)
    else:
        by_place = given[1:2] if name in PIECES else given[:1]
        if node.kwargs.get("dim", by_place[0] if by_place else 0) not in (dim, dim - rank):
            return []
    flat = [n for value in given for n in (value if isinstance(value, (list, tuple)) else [value])]
    return [abs(n) for n in flat if type(n) is int]


def _taken(index: Any, dim: int, rank: int) -> list[Any]:
    """What an index takes of a dimension."""
    parts = [part for part in (index if isinstance(index, tuple) else (index,)) if part is not None]
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
    if at is not None:
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    part = parts[dim] if dim < len(parts) else None
    return [part.start, part.stop] if isinstance(part, slice) else [part]


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
