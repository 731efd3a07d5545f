"""A module as a torch.fx graph whose layers are all modules: what functional calls and shared layers become.

F.conv2d(x, self.weight)  ->  a convolution that holds the same parameter, or the product that it was given
one layer called twice    ->  on request, two layers
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx, nn

from bntool.graphs.base import Node, Param
from bntool.graphs.fx_baked import is_torchs_own
from bntool.graphs.fx_calls import place_of
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.fx_sizes import attribute

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def functions_to_modules(module: fx.GraphModule, graph: FxGraph) -> None:
    """Turns functional convolutions, linears and norms of `module`, which `graph` describes, into modules."""
    made: dict[Hashable, str] = {}
    for node in graph.nodes:
        if isinstance(node.origin, fx.Node) and node.origin.op == "call_function":
            layer = _layer(node, module)
            if layer is not None:
                _call_instead(module, node, layer, made)
    module.graph.lint()
    module.recompile()


def _layer(node: Node, module: fx.GraphModule) -> nn.Module | None:
    """The module that does what the node does, with the node's own parameters; None where there is none."""
    if node.kind not in MAKERS or not all(p.writable for p in node.params.values()):
        return None
    tensors = {name: _tensor(module, p) for name, p in node.params.items()}
    made = MAKERS[node.kind](node, tensors)
    return made if made is None or is_torchs_own(made) else None


def _tensor(module: nn.Module, param: Param) -> torch.Tensor:
    """What a node computes with: the tensor that is stored, or what the forward makes of it."""
    stored = attribute(module, param.name)
    assert isinstance(stored, torch.Tensor)
    if not param.is_product:
        return stored
    return nn.Parameter(torch.from_numpy(param.fetch()).to(stored), stored.requires_grad)


def _conv(node: Node, tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    a, weight = node.attrs, tensors["weight"]
    if "stride" not in a:
        return None
    window = (weight.shape[2:], a["stride"], a["padding"], a["dilation"], a["groups"])
    conv = CONVS[weight.ndim - 2]
    sizes = (weight.shape[1] * a["groups"], weight.shape[0])
    return _holding(conv(*sizes, *window, bias="bias" in tensors, device="meta"), tensors)


def _linear(node: Node, tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    weight = tensors["weight"]
    if weight.ndim != 2 or node.attrs.get("transposed"):
        return None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors, device="meta")
    return _holding(made, tensors)


def _norm(node: Node, tensors: dict[str, torch.Tensor]) -> nn.Module | None:
    rank = node.attrs.get("rank")
    if rank not in NORMS or node.attrs["training"] or not tensors.keys() >= {"mean", "var"}:
        return None
    if ("weight" in tensors) != ("bias" in tensors):
        return None
    affine = "weight" in tensors
    made = NORMS[rank](len(tensors["mean"]), eps=node.attrs["eps"], affine=affine, device="meta")
    made.num_batches_tracked = torch.zeros((), dtype=torch.long, device=tensors["mean"].device)
    names = {"mean": "running_mean", "var": "running_var"}
    return _holding(made, {names.get(name, name): tensor for name, tensor in tensors.items()})


MAKERS = {"conv": _conv, "linear": _linear, "batch_norm": _norm}


def _holding(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """`module` with these very tensors, shared with whoever else holds them."""
    for name, tensor in tensors.items():
        if name in module._parameters:
            own = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            module._parameters[name] = own
        else:
            module._buffers[name] = tensor
    return module.eval()


def hold_constants(model: nn.Module, graph: FxGraph) -> list[str]:
    """Buffers of the model for the tensors that its forward has made or found elsewhere; their names.

    They are its own: a class, or whoever else holds them, keeps what it has.
    """
    constants = graph.ways[0].sizes.constants
    for name, tensor in constants.items():
        model.register_buffer(name, tensor.detach().clone(), persistent=False)
    return list(constants)


def _call_instead(module: fx.GraphModule, node: Node, layer: nn.Module, made: dict[Hashable, str]) -> None:
    old: fx.Node = node.origin
    key = (node.owner, tuple(sorted((k, repr(v)) for k, v in node.attrs.items())))
    if key not in made:
        made[key] = free_name(module, old.name)
        module.add_submodule(made[key], layer)
    with module.graph.inserting_after(old):
        x = old.args[0] if old.args else old.kwargs["input"]
        new = module.graph.call_module(made[key], (x,))
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    module.graph.erase_node(old)


def free_name(module: nn.Module, stem: str) -> str:
    """`stem`, or with a number behind it if something has that name already."""
    name, number = stem, 0
    while _taken(module, name):
        number += 1
        name = f"{stem}_{number}"
    return name


def _taken(module: nn.Module, path: str) -> bool:
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def split_shared(module: fx.GraphModule) -> list[str]:
    """Gives every call of a shared convolution or linear its own copy; the names of those copied."""
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), LAYERS):
            calls.setdefault(str(node.target), []).append(node)
    shared = {name: nodes for name, nodes in calls.items() if len(nodes) > 1}
    for name, nodes in shared.items():
        for node in nodes[1:]:
            node.target = free_name(module, name)
            module.add_submodule(node.target, copy.deepcopy(module.get_submodule(name)))
    module.recompile()
    return list(shared)


def untie(module: fx.GraphModule) -> list[tuple[str, str]]:
    """Gives layers that hold one parameter a copy each: (the parameter, the one it was) for every copy."""
    first: dict[Hashable, str] = {}
    copies = []
    for path, layer in module.named_modules():
        own = layer._parameters if isinstance(layer, (*LAYERS, nn.Embedding)) else {}
        for name, parameter in own.items():
            place = None if parameter is None else place_of(parameter)
            if parameter is not None and place in first:
                own[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                copies.append((f"{path}.{name}", first[place]))
            first.setdefault(place, f"{path}.{name}")
    return copies


def tie_equal(module: fx.GraphModule, copies: Sequence[tuple[str, str]]) -> None:
    """Copies that are still what they were copied from become one parameter again."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for copied, original in copies:
        if copied in parameters and original in parameters:
            one, other = parameters[copied], parameters[original]
            if one.shape == other.shape and torch.equal(one, other):
                layer, _, name = copied.rpartition(".")
                module.get_submodule(layer)._parameters[name] = other


def share_equal(module: fx.GraphModule, names: list[str]) -> None:
    """Copies that are still what they were copied from become one layer again."""
    first: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        stem = next((n for n in names if copy_of(str(node.target), n)), None)
        if node.op == "call_module" and stem is not None:
            node.target = _shared_with(module, str(node.target), first.setdefault(stem, []))
    module.delete_all_unused_submodules()
    module.recompile()


def copy_of(name: str, stem: str) -> bool:
    """Whether `name` is the layer that was called `stem`, or what `split_shared` calls its copies."""
    return name == stem or name.removeprefix(f"{stem}_").isdigit()


def _shared_with(module: fx.GraphModule, name: str, others: list[str]) -> str:
    """The one of the others that computes the same, else the name itself, which joins them."""
    layer = module.get_submodule(name)
    same = next((n for n in others if _equal(module.get_submodule(n), layer)), None)
    if same is None:
        others.append(name)
    return same or name


def _equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
