"""Graph form: a torch.fx graph, with what modules cannot express: functional calls, merged branches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import fx, nn

from bntool.copying import copied
from bntool.edits import leave_plan
from bntool.fold_job import Job
from bntool.graphs.base import Node
from bntool.graphs.fx_graph_form import (
    copy_of,
    functions_to_modules,
    hold_constants,
    share_equal,
    split_shared,
    tie_equal,
    untie,
)
from bntool.graphs.fx_merge import drop_dead_code
from bntool.graphs.islands import module_graph
from bntool.lazy import give_sizes, has_lazy_parts, insist_on_data, stand_ins
from bntool.merging import merge_branches
from bntool.padding import move_padding
from bntool.plan import Plan
from bntool.pooling.batches import Call
from bntool.report.merges import Merged
from bntool.report.savings import Grown, new_biases, size_of
from bntool.search import is_norm, place
from bntool.tracing import DROPOUTS, carry_hooks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class GraphForm:
    """A model on its way to a folded graph: `merged` are the layers that took others in, `shared` those that
    were split, `tied` the parameters that were copied, each with what it is a copy of; `padded` the norms for
    which padding got values, with the MACs that they took before it.
    """

    model: nn.Module
    merged: tuple[Merged, ...] = ()
    padded: Mapping[str, int | None] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def graph_form(
    model: nn.Module,
    arguments: Arguments | None,
    *,
    keep: Sequence[str],
    merge: bool,
    split: bool,
    pad_values: bool = False,
) -> GraphForm:
    """A copy of `model` as a graph of modules, ready to be folded.

    `merge` makes parallel branches and chains one layer each, but none with a norm in `keep`; `split` gives
    every call of a shared layer its own copy, and layers with tied weights one each; `pad_values` moves norms
    behind zero padding. A model that cannot be traced whole stays what it is; its parts become graphs where
    they merge.
    """
    insist_on_data(model)
    lazy = has_lazy_parts(model)
    model = copied(model, stand_ins(model) if lazy else {})
    if lazy:
        give_sizes(model, None if arguments is None else Call(*arguments))
    notes: list[str] = []
    shared: list[str] = []
    tied: list[tuple[str, str]] = []
    traced = _traced(model, arguments)
    if traced is None:
        notes.append("it cannot be traced whole, so it stays a module and only its parts are graphs")
    else:
        model = traced
        shared = split_shared(traced) if split else []
        tied = untie(traced) if split else []
    merged: Sequence[Merged] = ()
    padded: dict[str, int | None] = {}
    if merge and arguments is not None:
        model, merged = merge_branches(model, arguments, keep=keep)
    if pad_values and isinstance(model, fx.GraphModule):
        graph = module_graph(model, arguments)
        shapes = {place(node): graph.shape(node) for node in graph.nodes if is_norm(node)}
        for name in move_padding(model, graph, keep):
            shape = shapes[name]
            padded[name] = None if shape is None else prod(shape)
        notes.extend(f"{name} goes into what pads: with other values instead of zeros" for name in padded)
    return GraphForm(model, tuple(merged), padded, tuple(shared), tuple(tied), tuple(notes))


def _traced(model: nn.Module, arguments: Arguments | None) -> fx.GraphModule | None:
    graph = module_graph(model, arguments, hooked_whole=True, as_given=True)
    if not graph.is_one:
        return None
    constants = hold_constants(model, graph)
    module = fx.GraphModule(model, graph.ways[0].graph)
    if constants:  # they are buffers now, which layers may have as weights
        graph = module_graph(module, arguments, hooked_whole=True, as_given=True)
        module = fx.GraphModule(module, graph.ways[0].graph)
    carry_hooks(model, module)
    functions_to_modules(module, graph)
    drop_dead_code(module)
    return module


def folded_graph(
    model: nn.Module,
    arguments: Arguments | None,
    keep: tuple[str, ...],
    *,
    merge: bool,
    split: bool,
    pad_values: bool,
) -> tuple[GraphForm, Job]:
    """A folded copy of `model` in graph form, and the job that folded it."""
    form = graph_form(model, arguments, keep=keep, merge=merge, split=split, pad_values=pad_values)
    job = Job(form.model, arguments, keep, in_place=True)
    job.run()
    form = finish(form, arguments, keep=keep, merge=merge)
    if isinstance(form.model, fx.GraphModule) or form.merged:
        leave_plan(form.model)
    return form, job


def finish(form: GraphForm, arguments: Arguments | None, *, keep: Sequence[str], merge: bool) -> GraphForm:
    """Takes out of a folded graph what does nothing any more, and merges what only folding made a chain."""
    if isinstance(form.model, fx.GraphModule):
        _drop_identities(form.model)
    if merge and arguments is not None:
        model, merged = merge_branches(form.model, arguments, keep=keep)
        form = replace(form, model=model, merged=(*form.merged, *merged))
    if isinstance(form.model, fx.GraphModule):
        share_equal(form.model, list(form.shared))
        tie_equal(form.model, form.tied)
        form = replace(form, notes=(*form.notes, *_of_eval_mode(form.model)))
    return form


def grown(form: GraphForm, job: Job) -> Grown:
    """What layers hold more than before: new biases, copies of what was shared, values to pad with."""
    layers = {place(node): node for node in job.graph.nodes if node.owner is not None}
    left = dict(form.model.named_modules())
    more = [(owner, size) for owner, size in new_biases(job.plan).items()]
    for stem in form.shared:
        there = [node for name, node in layers.items() if name in left and copy_of(name, stem)]
        more += _copies(job.plan, there)
    held = dict(form.model.named_parameters())  # each once, under its first name
    for own, original in form.tied:
        names = [name.rpartition(".")[0] for name in (own, original)]
        owner = next((o for n in names if n in layers and (o := layers[n].owner) in job.plan.changes), None)
        if own in held and owner is not None:
            more.append((owner, (held[own].numel(), held[own].nbytes)))
    for step in job.plan.steps:
        if step.norm.names[0] in form.padded:
            mean = step.norm.calls[0].params["mean"]
            more.append((step.absorbed[0].node.owner, (0, size_of(mean.shape, mean)[1])))
    total: Grown = {}
    for owner, (values, size) in more:
        before = total.get(owner, (0, 0))
        total[owner] = (before[0] + values, before[1] + size)
    return total


def _copies(plan: Plan, there: list[Node]) -> list[tuple[Hashable, tuple[int, int]]]:
    """What copies of one layer take: one of those that are `there` is the layer itself."""
    copies = sorted(there, key=lambda node: node.owner in plan.changes)[1:]
    return [(node.owner, size_of(p.shape, p)) for node in copies for p in node.params.values()]


def _of_eval_mode(module: fx.GraphModule) -> list[str]:
    """A note on dropouts that the graph has as they are in eval mode, so that `.train()` switches none on."""
    off = [n for n in module.graph.nodes if n.target in DROPOUTS and n.kwargs.get("training") is False]
    return ["the graph is that of eval mode: its dropouts stay off in train mode"] if off else []


def _drop_identities(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op == "call_module" and type(module.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0] if node.args else next(iter(node.kwargs.values())))
            module.graph.erase_node(node)
