"""Every way that a module's control flow can go, each as a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from bntool.graphs.fx_sizes import Sizes
from bntool.graphs.fx_trace import Tracer
from bntool.graphs.fx_untouched import untouched

#: control flow is followed through at most so many ways
MAX_PATHS = 16


@dataclass
class Way:
    """One way through a module: its graph, its sizes, the values hooks see."""

    graph: fx.Graph
    sizes: Sizes
    watched: dict[fx.Node, str]
    rebound: set[str] = field(default_factory=set)
    """Parameters and buffers in whose places the forward puts others."""
    prefix: str = ""
    """The path of the module that was traced, where it is a part of the model."""


def ways_through(
    root: nn.Module,
    is_leaf: Callable[[nn.Module, str], bool],
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None,
    *,
    sizes_decide: bool = True,
    as_given: bool = False,
) -> list[Way] | str:
    """Every way through `root`, or the path of the module that cannot be traced.

    Forks that depend on sizes go as with those of `inputs` where `sizes_decide`, else both ways. Arguments
    with defaults can be given or not; with `as_given` a graph takes none that `inputs` leave out.
    """
    ways: list[Way] = []
    todo: list[list[bool]] = [[]]
    while todo:
        if len(ways) + len(todo) > MAX_PATHS:
            return ""
        decisions = todo.pop()
        given = len(decisions)
        tracer = Tracer(is_leaf, decisions, inputs, sizes_decide, as_given)
        try:
            with untouched(root) as rebound:
                graph = tracer.run(root)
        except Exception as error:
            if not (decisions and cannot_happen(error)):
                return tracer.failed_in or ""
        else:
            assert tracer.sizes is not None
            ways.append(Way(graph, tracer.sizes, tracer.watch.seen, rebound))
        todo.extend([*decisions[:i], False] for i in range(given, len(decisions)))
    return ways or ""


def cannot_happen(error: Exception) -> bool:
    """Whether the model itself raises on a way, and not the tracing: nobody goes it."""
    return isinstance(error, (AssertionError, ValueError)) or "'NoneType'" in str(error)
