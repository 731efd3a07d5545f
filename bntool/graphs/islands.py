"""Trace a model whole; where that fails, trace the parts around what cannot be traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn
from torch.optim.swa_utils import AveragedModel

from bntool.algebra.affine import Blocked
from bntool.graphs.base import Node
from bntool.graphs.fx_calls import param_of
from bntool.graphs.fx_decorated import written
from bntool.graphs.fx_hooks import has_hooks
from bntool.graphs.fx_kinds import is_leaf
from bntool.graphs.fx_modules import FxGraph
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_translate import Translator
from bntool.graphs.fx_ways import Failed, Way, ways_through
from bntool.graphs.reach import ITEMS, islands_of
from bntool.graphs.recording import Recording, record

#: a note that such arguments must not be given
WITHOUT = "for calls without {}: those with them"
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def module_graph(
    root: nn.Module,
    inputs: Inputs | None = None,
    *,
    leaves: tuple[type[nn.Module], ...] = (),
    hooked_whole: bool = False,
    as_given: bool = False,
    for_other_batches: bool = False,
    whole: bool = True,
) -> FxGraph:
    """The graph of a module as the planner needs it: every way through it and its islands.

    Modules of the classes `leaves` are not looked into: each call is one node, of a kind nothing is known of.
    With `hooked_whole` neither are modules with hooks: a graph that is to be run would lose them. With
    `as_given` arguments that `inputs` leave out have their defaults, and are none of the graph's. Where
    constant slices take other parts `for_other_batches`, those have ways of their own. If it is not a `whole`
    model but a part of one, the code around that may call it with other sizes.
    """
    graph = FxGraph(root, for_other_batches=for_other_batches)
    inside = wrapped(root)
    model = root.get_submodule(inside)
    trace_part(graph, model, inside, inputs, leaves, hooked_whole, whole=whole, as_given=as_given)
    done: set[str] = set()
    recording = record(root, inputs) if graph.dark else Recording()
    while graph.dark - done:
        name = min(graph.dark - done)
        done.add(name)
        own, alone = parts_of(root, name, recording)
        for part in own:
            trace_part(graph, root.get_submodule(part), part, recording.of(root.get_submodule(part)), leaves)
        for part in alone:
            leave_alone(graph, part)
    graph.finish()
    return graph


def parts_of(root: nn.Module, name: str, recording: Recording) -> tuple[list[str], list[str]]:
    """The parts of the module called `name`, whose own code cannot be traced: (those that this only calls,
    those that it may look into or change).
    """
    module = root.get_submodule(name)
    own, alone = islands_of(module)
    items = [path for path in own if "." in path and isinstance(module.get_submodule(path), ITEMS)]
    alone += [path for path in items if recording.reaches_into(module.get_submodule(path))]
    return [joined(name, path) for path in own if path not in alone], [joined(name, path) for path in alone]


def wrapped(root: nn.Module) -> str:
    """The path of the module to which a wrapper only hands its inputs on; "" for any other module."""
    path = ""
    while isinstance(root.get_submodule(path), WRAPPERS):
        path = joined(path, "module")
    return path


def trace_part(
    graph: FxGraph,
    part: nn.Module,
    prefix: str,
    inputs: Inputs | Blocked | None,
    leaves: tuple[type[nn.Module], ...] = (),
    hooked_whole: bool = False,
    whole: bool = False,
    as_given: bool = False,
) -> None:
    """Add every way through `part`; modules that cannot be traced become one opaque node each.

    Unless `part` is the `whole` model, the sizes of its `inputs` decide no fork: who knows with what else the
    code around it calls it another time.
    """
    known = None if isinstance(inputs, Blocked) else inputs

    def leaf(module: nn.Module, path: str) -> bool:
        if hooked_whole and has_hooks(module):
            return True
        if graph.dark and joined(prefix, path) in graph.dark:
            return True
        return isinstance(module, leaves) or is_leaf(module, path)

    if is_leaf(part, prefix):
        graph.called_there.add(prefix)
        call_alone(graph, part, prefix)
        return
    options = {"sizes_decide": whole, "for_other_batches": graph.for_other_batches}
    ways = _ways(graph, part, prefix, known, leaf, as_given=as_given, **options)
    if ways is None and whole and not as_given and (omitted := left_out(part, known)):
        for found in (graph.notes, graph.dark, graph.kept):
            found.clear()
        ways = _ways(graph, part, prefix, known, leaf, as_given=True, **options)
        if ways is not None:
            graph.notes.append(f"{WITHOUT.format(', '.join(omitted))} cannot be traced")
    elif ways and ways[0].further and not as_given:
        graph.notes.append(f"{WITHOUT.format(', '.join(ways[0].further))} are not followed")
    if ways is None:
        return
    for way in ways:
        way.prefix = prefix
        if isinstance(inputs, Blocked):
            way.sizes.unsized = inputs
        graph.ways.append(way)
        Translator(graph, way, part, prefix).run()


def _ways(
    graph: FxGraph,
    part: nn.Module,
    prefix: str,
    inputs: Inputs | None,
    leaf: Callable[[nn.Module, str], bool],
    **options: bool,
) -> list[Way] | None:
    """Every way through `part` around what cannot be traced; None if that is its own forward.

    (Then what could not be traced within it may have been given what it never is: it is tried by itself.)
    """
    before = set(graph.dark), dict(graph.kept), list(graph.notes)
    while True:
        ways = ways_through(part, leaf, inputs, kept=graph.kept, **options)
        if not isinstance(ways, Failed):
            return ways
        failed = joined(prefix, ways.path)
        if failed in graph.dark:  # nobody looks into that: it is what calls it that fails
            failed = prefix
        whole = options["sizes_decide"]
        advice = "; example inputs may help" if whole and inputs is None and ways.sizes_may_help else ""
        if failed == prefix:
            graph.dark, graph.kept, graph.notes = before
        graph.notes.append(f"{failed or 'the model'} {ways.why}: its inside is analysed in parts{advice}")
        graph.dark.add(failed)
        if ways.keeps:
            graph.kept[graph.root.get_submodule(failed)] = ways.keeps
        if failed == prefix:
            return None


def left_out(part: nn.Module, inputs: Inputs | None) -> list[str]:
    """The arguments of a forward that `inputs` leave out."""
    if inputs is None:
        return []
    rest = [*inspect.signature(type(part).forward).parameters.values()][1 + len(inputs[0]) :]
    return [written(p) for p in rest if p.name not in inputs[1]]


def call_alone(graph: FxGraph, module: nn.Module, path: str) -> None:
    """A single layer that untraceable code calls: nobody knows what feeds it or what it feeds."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    params = {name: param_of(tensor, joined(path, name)) for name, tensor in tensors}
    graph.add(Node(path, "opaque", params=params, where=path, attrs={"what": type(module).__name__}))


def leave_alone(graph: FxGraph, path: str) -> None:
    """Everything inside may be read by code that nobody can see."""
    call_alone(graph, graph.root.get_submodule(path), path)


def joined(prefix: str, path: str) -> str:
    return ".".join(part for part in (prefix, path) if part)
