"""Norms put into a traced graph: behind function calls too, and where modules are shared by others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from bntool.edits import apply, record
from bntool.errors import RunError, UsageError
from bntool.globs import selected
from bntool.graphs.fx_graph_form import free_name
from bntool.graphs.fx_ways import is_whole
from bntool.norms.submodules import state_kept
from bntool.placing.flow import Flow, called
from bntool.placing.module_form import Placed, alike, taken_bias
from bntool.placing.options import Options, Planned
from bntool.placing.sites import Question, Site, by_flow, tied, wanted_word, with_sizes
from bntool.pooling.batches import Call
from bntool.sources.importing import said
from bntool.specs import build, put
from bntool.tracing import as_graph, call_at, described

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def graph_sites(flow: Flow, question: Question) -> list[Site]:
    """All calls of convolutions and linears, of modules and of functions, in the order they run."""
    if not is_whole(flow.ways):
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
    if not reason and not question.include:
        reason = tied(site, flow, _weight(flow, node))
    return replace(site, reason=reason) if reason else _sized(flow, site, kind, question)


def _at(flow: Flow, site: Site, node: fx.Node) -> Site:
    if site.where != "after-activation":
        return site
    users = list(node.users)
    if len(users) != 1 or flow.role(users[0]) != "activation":
        return replace(site, reason="no activation follows it alone")
    return replace(site, at=users[0].name, node=users[0])


def _sized(flow: Flow, site: Site, kind: str, question: Question) -> Site:
    assert site.node is not None
    node = site.node.all_input_nodes[0] if site.where == "before-layer" else site.node
    value = flow.ways[0].sizes.value(node)
    if not isinstance(value, torch.Tensor):
        return replace(site, reason="its sizes are not known")
    named = bool(question.include)
    return with_sizes(site, value, kind, named=named, asked=named or bool(question.layers))


def _weight(flow: Flow, node: fx.Node) -> Any:
    """The parameter that is the weight of a layer, or that a function call is given as its weight."""
    if (module := flow.module(node)) is not None:
        return module._parameters.get("weight")
    read: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    known = isinstance(read, fx.Node) and read.op == "get_attr"
    return flow.ways[0].sizes.tensor(str(read.target)) if known else None


def with_slots(
    model: nn.Module, example: Call, sites: Sequence[Planned]
) -> tuple[fx.GraphModule, list[str], list[str]]:
    """The model as a graph with an Identity at every site; where those are; what to know of the graph."""
    inputs = (example.args, example.kwargs)
    module, notes = as_graph(model, inputs)
    record(module, {"op": "trace", "inputs": described(inputs)})
    paths = [_add_slot(module, planned) for planned in sites]
    return module, paths, notes


def insist_on_graph(graph: fx.GraphModule, example: Call) -> None:
    """See that it runs, as the model itself did: tracing follows what happens to values, and no more.

    Raises: UsageError.
    """
    try:
        with state_kept(graph), torch.no_grad():
            example.run(graph.eval())
    except RunError as problem:
        what = f"as a graph the model raised {said(problem.__cause__ or problem)}"
        raise UsageError(what, where="form", next="Use form='module'.") from problem


def _add_slot(module: fx.GraphModule, planned: Planned) -> str:
    at = planned.site.at
    path = free_name(module, f"{at}_norm")
    call_at(module, at, path, nn.Identity(), ahead=planned.site.where == "before-layer")
    return path


def fill_slots(
    module: fx.GraphModule, sites: Sequence[Planned], paths: Sequence[str], flow: Flow, options: Options
) -> list[Placed]:
    """The norms in place of the Identities."""
    return [_fill(module, planned, path, flow, options) for planned, path in zip(sites, paths, strict=True)]


def _fill(module: fx.GraphModule, planned: Planned, path: str, flow: Flow, options: Options) -> Placed:
    site = planned.site
    called_layer = site.layer in dict(module.named_modules())  # else its weight is somewhere in the model
    layer = module.get_submodule(site.layer) if called_layer else module
    norm = alike(build(planned.spec, like=layer), layer)
    put(module, path, norm)
    what = {"path": path, "module": planned.spec, "like": site.layer if called_layer else ""}
    record(module, {"op": "call", "node": site.at, "ahead": site.where == "before-layer", **what})
    bias, word = taken_bias(layer, planned, flow, options.bias or "drop") if called_layer else (None, "kept")
    if word == "dropped":
        apply(module, {"op": "drop_bias", "path": site.layer})
    return Placed(planned, norm, bias, word)
