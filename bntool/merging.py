"""Merge parallel branches and chains of linear ops in a module: graph form, as modules cannot say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import fx, nn

from bntool.algebra.affine import Blocked
from bntool.branches import find_merges
from bntool.globs import matches
from bntool.graphs.fx_graph_form import hold_constants
from bntool.graphs.fx_hooks import has_hooks
from bntool.graphs.fx_merge import apply_merges
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_told_apart import told_apart
from bntool.graphs.islands import module_graph, parts_of
from bntool.graphs.recording import record
from bntool.report.merges import Merged, merged
from bntool.tracing import carry_hooks, note


def merge_branches(
    model: nn.Module, arguments: Inputs, *, keep: Sequence[str] = ()
) -> tuple[nn.Module, list[Merged]]:
    """`model` as a torch.fx graph in which sums and chains of linear ops are single layers.

    Where a model cannot be traced whole its traceable parts become graphs; the module itself is changed then,
    so pass a copy. Merging changes what can be merged, so it goes on until nothing is left.
    """
    module, done = _merge(model, arguments, "", keep)
    return (module, done) if module is not None else (model, _merge_parts(model, arguments, keep))


def _merge(
    model: nn.Module, inputs: Inputs, prefix: str, keep: Sequence[str]
) -> tuple[fx.GraphModule | None, list[Merged]]:
    """None if the model, or with a prefix the part of one, cannot be traced in one way."""
    done: list[Merged] = []
    while True:
        graph = module_graph(model, inputs, hooked_whole=True, as_given=not prefix, whole=not prefix)
        if not graph.is_one:
            return None, []
        merges = find_merges(graph, keep=lambda n: matches(prefix + n.where, keep))
        hold_constants(model, graph)
        made = fx.GraphModule(model, graph.ways[0].graph)
        carry_hooks(model, made)
        model = made
        names = apply_merges(model, merges)
        done += merged(graph, merges, names, prefix)
        if not any(names):
            return model, done


def _merge_parts(model: nn.Module, inputs: Inputs, keep: Sequence[str]) -> list[Merged]:
    """Merges within the parts that code which cannot be traced does nothing with but call them."""
    told: set[nn.Module] = set()
    with told_apart({type(module) for module in model.modules()}, (), told):
        recording = record(model, inputs)
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    done: list[Merged] = []
    todo = [""]
    while todo:
        for path in parts_of(model, todo.pop(0), recording)[0]:
            part = model.get_submodule(path)
            given, graph, found = recording.of(part), None, list[Merged]()
            seen = part in told or places[part] > 1 or has_hooks(part)  # copies of graphs lose hooks
            if not isinstance(given, Blocked) and not seen and list(part.children()):
                graph, found = _merge(part, given, f"{path}.", keep)
            if graph is None:
                todo.append(path)
            elif found:
                _put(model, path, graph)
                done += found
    return done


def _put(model: nn.Module, path: str, graph: fx.GraphModule) -> None:
    """A graph in the place of a part: with its attributes, which the code around it may read."""
    part = model.get_submodule(path)
    for name, value in vars(part).items():
        if name not in vars(graph):
            note(graph, name, value)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, graph)
