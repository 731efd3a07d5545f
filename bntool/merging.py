"""Merge parallel branches and chains of linear ops in a module: graph form, as modules cannot say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from bntool.branches import find_merges
from bntool.copying import own_inputs
from bntool.globs import matches
from bntool.graphs.fx_graph_form import hold_constants
from bntool.graphs.fx_merge import apply_merges
from bntool.graphs.fx_untouched import untouched
from bntool.graphs.fx_writes import Undone
from bntool.graphs.islands import module_graph
from bntool.graphs.running import outputs_of
from bntool.norms.submodules import state_kept
from bntool.report.merges import Merged, merged

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def merge_branches(
    model: nn.Module, arguments: Arguments, *, keep: Sequence[str] = ()
) -> tuple[nn.Module, list[Merged]]:
    """`model` as a torch.fx graph in which sums and chains of linear ops are single layers.

    Where a model cannot be traced whole its traceable parts become graphs; the module itself is changed then,
    so pass a copy. Merging changes what can be merged, so it goes on until nothing is left.
    """
    module, done = _merge(model, arguments, "", keep)
    return (module, done) if module is not None else (model, _merge_parts(model, arguments, "", keep))


def _merge(
    model: nn.Module, arguments: Arguments, prefix: str, keep: Sequence[str]
) -> tuple[fx.GraphModule | None, list[Merged]]:
    """None if the model cannot be traced in one way."""
    done: list[Merged] = []
    while True:
        graph = module_graph(model, arguments, hooked_whole=True, as_given=True)
        if not graph.is_one:
            return None, []
        merges = find_merges(graph, keep=lambda n: matches(prefix + n.where, keep))
        hold_constants(model, graph)
        model = fx.GraphModule(model, graph.ways[0].graph)
        names = apply_merges(model, merges)
        done += merged(graph, merges, names, prefix)
        if not any(names):
            return model, done


def _merge_parts(model: nn.Module, arguments: Arguments, prefix: str, keep: Sequence[str]) -> list[Merged]:
    """Merges within the children that are called exactly once, with what they were called with."""
    done: list[Merged] = []
    for name, calls in _calls(model, arguments).items():
        child = model.get_submodule(name)
        if len(calls) != 1 or not list(child.children()):
            continue
        graph, inner = _merge(child, calls[0], f"{prefix}{name}.", keep)
        if graph is None:
            done += _merge_parts(child, calls[0], f"{prefix}{name}.", keep)
        elif inner:
            setattr(model, name, graph)
            done += inner
    return done


def _calls(model: nn.Module, arguments: Arguments) -> dict[str, list[Arguments]]:
    """With what each child of a model is called in one run."""
    calls: dict[str, list[Arguments]] = {name: [] for name, _ in model.named_children()}
    handles = [
        child.register_forward_pre_hook(_recorder(calls[name]), with_kwargs=True)
        for name, child in model.named_children()
    ]
    try:
        with untouched(model), state_kept(model), Undone(model), torch.no_grad():
            args, kwargs = own_inputs(arguments)
            outputs_of(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorder(calls: list[Arguments]) -> Callable[..., None]:
    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    return record
