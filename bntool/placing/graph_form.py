"""Norms put into a traced graph: behind function calls too, and where modules are shared by others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.edits import build, put
from bntool.errors import UsageError
from bntool.norms.kinds import Setting
from bntool.norms.submodules import selected
from bntool.placing.flow import Flow, called
from bntool.placing.module_form import Placed, alike, taken_bias
from bntool.placing.options import Options, Planned
from bntool.placing.sites import Question, Site, by_flow, wanted_word

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def graph_sites(flow: Flow, question: Question) -> list[Site]:
    """All calls of convolutions and linears, of modules and of functions, in the order they run."""
    if len(flow.ways) != 1 or flow.ways[0].prefix:
        raise UsageError(
            "the model cannot be traced whole",
            where="form",
            next="Use form='module', which can do it in parts.",
        )
    found = list(_layers(flow))
    has_conv = any(kind == "conv" for _, kind in found)
    default = "all" if question.include else "conv" if has_conv else "linear"
    asked = question.layers or default
    return [_site(flow, node, kind, question, asked) for node, kind in found]


def _layers(flow: Flow) -> Iterator[tuple[fx.Node, str]]:
    for node in flow.nodes():
        module = flow.module(node)
        if isinstance(module, _ConvNd) or (node.op == "call_function" and called(node) in CONVOLUTIONS):
            yield node, "conv"
        elif isinstance(module, nn.Linear) or (node.op == "call_function" and called(node) == "linear"):
            yield node, "linear"


def _site(flow: Flow, node: fx.Node, kind: str, question: Question, asked: str) -> Site:
    name = flow.path_of(node) if node.op == "call_module" else node.name
    site = Site(name, node.name, question.where, node=node)
    if not selected(name, question.include, question.exclude):
        return replace(site, reason="excluded or not included")
    if asked not in (kind, "all"):
        return replace(site, reason=wanted_word(kind))
    same = [n for n in flow.nodes() if node.op == "call_module" and n.target == node.target]
    if len(same) > 1:
        return replace(site, reason=f"shared: called {len(same)} times, each with statistics of its own")
    site = _at(flow, site, node)
    if site.reason:
        return site
    reason = by_flow(site, flow, [node], last=False)
    return replace(site, reason=reason) if reason else _sized(flow, site, kind)


def _at(flow: Flow, site: Site, node: fx.Node) -> Site:
    if site.where != "after-activation":
        return site
    users = list(node.users)
    if len(users) != 1 or flow.role(users[0]) != "activation":
        return replace(site, reason="no activation follows it alone")
    return replace(site, at=users[0].name, node=users[0])


def _sized(flow: Flow, site: Site, kind: str) -> Site:
    assert site.node is not None
    node = site.node.all_input_nodes[0] if site.where == "before-layer" else site.node
    value = flow.ways[0].sizes.value(node)
    if not isinstance(value, torch.Tensor):
        return replace(site, reason="its sizes are not known")
    last = kind == "linear" and value.dim() > 2
    channels = value.shape[-1 if last else 1]
    per_sample = value.numel() // (value.shape[0] * channels)
    setting = Setting(channels, value.dim(), last, per_sample)
    return replace(site, setting=setting, values=value.numel() // channels)


def with_slots(model: nn.Module, flow: Flow, sites: Sequence[Planned]) -> tuple[fx.GraphModule, list[str]]:
    """The model as a graph with an Identity at every site, and where those are."""
    graph = flow.ways[0].graph
    module = fx.GraphModule(model, graph, class_name=type(model).__name__)
    paths = [_add_slot(module, planned) for planned in sites]
    graph.lint()
    module.recompile()
    return module, paths


def _add_slot(module: fx.GraphModule, planned: Planned) -> str:
    node = planned.site.node
    assert node is not None
    path = f"{planned.site.at}_norm"
    module.add_submodule(path, nn.Identity())
    if planned.site.where == "before-layer":
        with module.graph.inserting_before(node):
            new = module.graph.call_module(path, (node.all_input_nodes[0],))
        node.replace_input_with(node.all_input_nodes[0], new)
        return path
    with module.graph.inserting_after(node):
        new = module.graph.call_module(path, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return path


def fill_slots(
    module: nn.Module, sites: Sequence[Planned], paths: Sequence[str], options: Options
) -> list[Placed]:
    """The norms in place of the Identities."""
    return [_fill(module, planned, path, options) for planned, path in zip(sites, paths, strict=True)]


def _fill(module: nn.Module, planned: Planned, path: str, options: Options) -> Placed:
    try:
        layer: nn.Module = module.get_submodule(planned.site.layer)
    except AttributeError:  # a function call: its weight is somewhere in the model
        layer = module
    norm = alike(build(planned.spec, like=layer), layer)
    put(module, path, norm)
    is_layer = isinstance(layer, _ConvNd | nn.Linear)
    bias, word = taken_bias(layer, planned, options.bias or "drop") if is_layer else (None, "kept")
    if word == "dropped":
        layer.register_parameter("bias", None)
    return Placed(planned, norm, bias, word)
