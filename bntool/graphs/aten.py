"""A torch.export program's ATen calls become calls of the torch functions that the table of kinds knows.

That is for analysis only: it happens on a copy of the program's graph whose nodes keep their names.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from bntool.graphs.aten_rules import BROADCASTS, KNOWN, REWRITES, TRANSPOSITIONS, TUPLES
from bntool.graphs.aten_schema import all_arguments, aten_name


def as_torch_functions(graph: fx.Graph) -> None:
    """Rewrite every ATen call that the table knows, in place."""
    for node in list(graph.nodes):
        name = aten_name(node)
        if name == "sym_size":
            node.op, node.target = "call_method", "size"
        elif name in REWRITES and not (name in TUPLES and _needs_more_than_the_first(node)):
            _rewrite(graph, node, name)
    for node in reversed(graph.nodes):
        if node.target in (*TRANSPOSITIONS, *BROADCASTS) and not node.users:
            graph.erase_node(node)


def _needs_more_than_the_first(node: fx.Node) -> bool:
    return any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users)


def _rewrite(graph: fx.Graph, node: fx.Node, name: str) -> None:
    outcome = REWRITES[name](all_arguments(node), node)
    if outcome is None or any(value for name, value in _keywords(node) if name not in KNOWN):
        return
    node.target, node.args = outcome
    node.kwargs = {key: value for key, value in node.kwargs.items() if key == "alpha"}
    if name in TUPLES:
        _take_the_firsts_place(graph, node)


def _keywords(node: fx.Node) -> list[tuple[str, Any]]:
    """The arguments that can be given by name only, which the table does not see."""
    assert isinstance(node.target, torch._ops.OpOverload)
    declared = {a.name for a in node.target._schema.arguments if a.kwarg_only}
    return [(name, value) for name, value in node.kwargs.items() if name in declared]


def _take_the_firsts_place(graph: fx.Graph, node: fx.Node) -> None:
    """A node that gave a tuple gives its first element, and says of it what it said of the tuple."""
    noted = node.meta.get("val")
    if isinstance(noted, (tuple, list)):
        node.meta = {**node.meta, "val": noted[0]}
    for user in list(node.users):
        user.replace_all_uses_with(node)
        graph.erase_node(user)
