"""A module as a torch.fx graph that is trained as the module is, and that a plan can make anew.

A graph has one way to go: what `forward` does in eval mode. Dropout by function call becomes a module, so
that `.train()` still switches it; any other difference between the modes is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bntool.errors import UsageError
from bntool.graphs.fx_graph_form import free_name, hold_constants
from bntool.graphs.fx_leaves import LEAVES
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_ways import is_whole
from bntool.graphs.islands import module_graph
from bntool.norms.submodules import state_kept

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
OTHER_WAY = "its forward goes another way in train mode; the graph has that of eval mode: use form='module'"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WITH_KWARGS = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")


def as_graph(model: nn.Module, inputs: Inputs | None) -> tuple[fx.GraphModule, list[str]]:
    """`model`, whose modules it takes over, as a graph; and what a reader should know of it.

    Modules with hooks stay whole, and the model's own hooks go along. Raises: UsageError.
    """
    with state_kept(model):
        graph = _traced(model.eval(), inputs)
        if not is_whole(graph.ways):
            advice = "Use form='module', which can do it in parts."
            raise UsageError("the model cannot be traced whole", where="form", next=advice)
        trained = _traced(model.train(), inputs)
    hold_constants(model, graph)
    module = fx.GraphModule(model, graph.ways[0].graph, class_name=type(model).__name__)
    notes = [*_follow_the_mode(module, trained), *_narrower(model, module)]
    carry_hooks(model, module)
    for name, value in model.__dict__.items():
        if name.startswith("_bntool_"):
            note(module, name, value)
    module.graph.lint()
    module.recompile()
    return module, notes


def _traced(model: nn.Module, inputs: Inputs | None) -> FxGraph:
    return module_graph(model, inputs, leaves=LEAVES, hooked_whole=True, as_given=True)


def carry_hooks(model: nn.Module, module: fx.GraphModule) -> None:
    """The root's own hooks, which a GraphModule does not take over."""
    for name in (*HOOKS, *WITH_KWARGS):
        getattr(module, name).update(getattr(model, name))


def note(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute that copies keep: deepcopy of a GraphModule knows only those listed in `meta`."""
    module.__dict__[name] = value
    if isinstance(module, fx.GraphModule):
        module.meta.setdefault(fx.graph_module._USER_PRESERVED_ATTRIBUTES_KEY, {})[name] = value


def _follow_the_mode(module: fx.GraphModule, trained: FxGraph) -> list[str]:
    """Make modules of the dropouts that only work in train mode. Returns: a note if more differs."""
    pairs = list(zip(module.graph.nodes, trained.ways[0].graph.nodes, strict=False)) if trained.ways else []
    same = is_whole(trained.ways) and len(module.graph.nodes) == len(trained.ways[0].graph.nodes)
    if not same or any((a.op, a.target) != (b.op, b.target) for a, b in pairs):
        return [OTHER_WAY]
    differing = [(a, b) for a, b in pairs if str((a.args, a.kwargs)) != str((b.args, b.kwargs))]
    switched = [a for a, b in differing if _is_switched(a, b)]
    for node in switched:
        _call_module(module, node)
    return [OTHER_WAY] if len(switched) < len(differing) else []


def _is_switched(node: fx.Node, trained: fx.Node) -> bool:
    """Whether it is a dropout that is on in train mode alone."""
    modes = [_arguments(n).get("training") for n in (node, trained)] if node.target in DROPOUTS else []
    return modes == [False, True]


def _arguments(node: fx.Node) -> dict[str, Any]:
    assert callable(node.target)
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _narrower(model: nn.Module, module: fx.GraphModule) -> list[str]:
    """A note on the arguments that the graph does not take because the example inputs left them out."""
    takes = {str(n.target).lstrip("*") for n in module.graph.nodes if n.op == "placeholder"}
    gone = [name for name in inspect.signature(model.forward).parameters if name not in takes]
    return [f"the graph takes no {', '.join(gone)}, which the example inputs leave out"] if gone else []


def _call_module(module: fx.GraphModule, node: fx.Node) -> None:
    given = _arguments(node)
    path = free_name(module, node.name)
    made = DROPOUTS[node.target](given["p"], inplace=given["inplace"])
    module.add_submodule(path, made.train(module.training))
    with module.graph.inserting_before(node):
        new = module.graph.call_module(path, (given["input"],))
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def call_at(module: fx.GraphModule, name: str, path: str, new: nn.Module, *, ahead: bool) -> None:
    """Call `new`, from now on the submodule `path`, on the value of a node (ahead: on what it reads)."""
    node = node_named(module, name)
    value = node.all_input_nodes[0] if ahead else node
    module.add_submodule(path, new)
    with module.graph.inserting_before(node) if ahead else module.graph.inserting_after(node):
        call = module.graph.call_module(path, (value,))
    if ahead:
        node.replace_input_with(value, call)
    else:
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    module.recompile()


def node_named(module: fx.GraphModule, name: str) -> fx.Node:
    """Raises: KeyError."""
    found: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
    return found[name]


# --- inputs as data: a trace asks for their sizes, never for their values


def described(value: Any) -> Any:
    """Inputs as JSON: tensors by shape and dtype. Raises: UsageError for what cannot be written down."""
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": [[described(k), described(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [described(v) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    what = f"an input of type {type(value).__name__} cannot be written into a plan"
    raise UsageError(what, where="form", next="Use form='module'.")


def restored(value: Any) -> Any:
    """What `described` wrote, with tensors that have sizes and no values."""
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return torch.empty(value["tensor"], dtype=getattr(torch, value["dtype"]), device="meta")
    if "dict" in value:
        return {restored(k): restored(v) for k, v in value["dict"]}
    kind = "tuple" if "tuple" in value else "list"
    return (tuple if kind == "tuple" else list)(restored(v) for v in value[kind])
