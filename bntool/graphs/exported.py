"""A torch.export program as the planner sees it: its ATen operators read as the torch functions they are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from bntool.algebra.absorbing import NORMS
from bntool.graphs.aten import as_torch_functions
from bntool.graphs.base import Node, never_written
from bntool.graphs.fx_batches import sizes_apart
from bntool.graphs.fx_layers import counter_bytes
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.fx_sizes import Inputs, Sizes
from bntool.graphs.fx_translate import Translator
from bntool.graphs.fx_ways import Way
from bntool.graphs.open_sizes import OpenSizes

#: the size of an open dimension for which the program has no example
STAND_IN = 3
CHANGES = "the program may change its parameters or statistics"
COMPUTED = "its parameters or statistics are computed on the way, or handed on"
INNER = "it is in a graph that the program calls: run_decompositions() takes those of no_grad blocks in"
#: kinds that a program can give a bias they do not have
CAN_TAKE_A_BIAS = ("conv", "conv_transpose", "linear", "matmul_const")


def program_graph(program: ExportedProgram, inputs: Any = None) -> FxGraph:
    """The neutral graph of a program. Its nodes have the names they have in the program's own graph."""
    module = unlifted(program)
    specs = [s for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, specs, strict=True):
        node.name = spec.arg.name  # which unlifting changes where it is a builtin's
    for node in list(module.graph.nodes):
        if node.op == "call_module" and "guards" in str(node.target):
            module.graph.erase_node(node)
    as_torch_functions(module.graph)
    graph = FxGraph(module)
    sizes = Sizes(module, (tuple(flat_inputs(program, inputs)), {}), noted=True)
    way = Way(module.graph, sizes, {})
    graph.ways.append(way)
    Translator(graph, way, module, "").run()
    graph.finish()
    for node in graph.nodes:
        _finish(node, graph)
        if node.kind in NORMS and "mean" in node.params:
            owner = node.params["mean"].name.rpartition(".")[0]
            node.attrs["counter_bytes"] = counter_bytes(module.get_submodule(owner))
    graph.aside += [*_other_norms(graph), *_inner_norms(program)]
    return graph


def _other_norms(graph: FxGraph) -> list[tuple[str, str]]:
    """Calls of norms that are no maps: one may be given its scale or its statistics by another value."""
    calls = [node for node in graph.nodes if node.kind == "opaque" and _is_norm(node.origin)]
    return [(node.where, COMPUTED) for node in calls]


def _inner_norms(program: ExportedProgram) -> list[tuple[str, str]]:
    """Those in graphs that the program's own graph calls, as it does for branches and blocks."""
    inner = [
        (path, node)
        for path, part in program.graph_module.named_modules()
        for node in (part.graph.nodes if path and isinstance(part, fx.GraphModule) else ())
    ]
    return [(f"{path}.{node.name}", INNER) for path, node in inner if _is_norm(node)]


def _is_norm(call: Any) -> bool:
    name = getattr(call.target, "__name__", "") if isinstance(call, fx.Node) else ""
    return call.op == "call_function" and ("batch_norm" in name or "instance_norm" in name)


def other_sizes(program: ExportedProgram, graph: FxGraph, inputs: Any = None) -> list[FxGraph]:
    """The program for other sizes that are open to it, where it moves other parts of them."""
    if not any(node.kind in NORMS for node in graph.nodes):
        return []
    sizes, ways = OpenSizes(program, flat_inputs(program, inputs)), [(w.graph, w.sizes) for w in graph.ways]

    def for_others(symbol: Any) -> list[Inputs]:
        near = _called_with(sizes.near(symbol))
        return sizes_apart(
            graph.root, ways, near, lambda numbers: _called_with(sizes.resized(symbol, numbers))
        )

    return [program_graph(program, args) for symbol in sizes.here for args, _ in for_others(symbol)]


def _called_with(inputs: Sequence[Sequence[Any]]) -> list[Inputs]:
    return [(tuple(values), {}) for values in inputs]


def unlifted(program: ExportedProgram) -> fx.GraphModule:
    """The program with its tensors as attributes; newer torch versions would add checks of the inputs."""
    options = inspect.signature(program.module).parameters
    module = program.module(check_guards=False) if "check_guards" in options else program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def flat_inputs(program: ExportedProgram, inputs: Any = None) -> list[Any]:
    """Tensors for the program's inputs in order: those given, its own example, or stand-ins of its sizes."""
    given = program.example_inputs if inputs is None else inputs
    names = program.graph_signature.user_inputs
    if isinstance(given, dict) and set(names) == set(given):
        return [given[name] for name in names]
    if given is not None:
        return list(pytree.tree_leaves(given))
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [_stand_in(values.get(name)) for name in names]


def _stand_in(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    sizes = [size if isinstance(size, int) else STAND_IN for size in value.shape]
    return torch.empty(sizes, dtype=value.dtype, device="meta")


def _finish(node: Node, graph: FxGraph) -> None:
    """What a program can do that modules cannot, and the names a person knows."""
    fixed = node.kind not in NORMS or all(never_written(graph, param) for param in node.params.values())
    node.pinned = "" if fixed else CHANGES  # any other call can be taken out
    if node.kind in CAN_TAKE_A_BIAS and node.attrs.get("side") != "left":
        node.attrs.pop("no_bias", None)
    named = (param.name.rpartition(".") for param in node.params.values())
    owner = next((head for head, _, leaf in named if head and leaf), "")
    stack = list(getattr(node.origin, "meta", {}).get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    node.where = owner if owner and node.kind != "opaque" else _readable(path) or node.where


def _readable(path: str) -> str:
    return path.replace("L['self'].", "").replace("L['self']", "")
