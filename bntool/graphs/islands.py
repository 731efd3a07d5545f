"""Trace a model whole; where that fails, trace the parts around what cannot be traced."""

from __future__ import annotations

from torch import nn

from bntool.graphs.fx_kinds import is_leaf
from bntool.graphs.fx_modules import FxGraph, Translator
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_trace import ways_through


def module_graph(
    root: nn.Module, inputs: Inputs | None = None, *, leaves: tuple[type[nn.Module], ...] = ()
) -> FxGraph:
    """The graph of a module as the planner needs it: every way through it and its islands.

    Modules of the classes `leaves` are not looked into: each call is one node, of a kind nothing is known of.
    """
    graph = FxGraph(root)
    dark: set[str] = set()
    trace_part(graph, root, "", inputs, dark, leaves)
    done: set[str] = set()
    while dark - done:
        name = min(dark - done)
        done.add(name)
        for child, module in root.get_submodule(name).named_children():
            path = f"{name}.{child}" if name else child
            trace_part(graph, module, path, None, dark, leaves)
    graph.finish()
    return graph


def trace_part(
    graph: FxGraph,
    part: nn.Module,
    prefix: str,
    inputs: Inputs | None,
    dark: set[str],
    leaves: tuple[type[nn.Module], ...] = (),
) -> None:
    """Add every way through `part`; modules that cannot be traced become one opaque node each."""

    def leaf(module: nn.Module, path: str) -> bool:
        full = ".".join(p for p in (prefix, path) if p)
        return full in dark or isinstance(module, leaves) or is_leaf(module, path)

    while True:
        ways = ways_through(part, leaf, inputs)
        if not isinstance(ways, str):
            break
        failed = ".".join(p for p in (prefix, ways) if p)
        graph.notes.append(f"{failed or 'the model'} cannot be traced: its inside is analysed in parts")
        dark.add(failed)
        if failed == prefix:
            return
    for way in ways:
        way.prefix = prefix
        graph.ways.append(way)
        Translator(graph, way, part, prefix).run()
