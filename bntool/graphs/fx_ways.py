"""Every way that a module's control flow can go, each as a graph."""

from __future__ import annotations

import dis
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, MappingProxyType, TracebackType
from typing import Any

from torch import fx, nn

from bntool.graphs.fx_batches import batches_apart
from bntool.graphs.fx_contents import FOREIGN
from bntool.graphs.fx_forks import MOST_WAYS, EndlessWays
from bntool.graphs.fx_hooks import has_own_call, hooks_feed_back
from bntool.graphs.fx_out_of_reach import out_of_reach
from bntool.graphs.fx_sizes import Inputs, Sizes, rebatched, revalued
from bntool.graphs.fx_trace import Tracer
from bntool.graphs.fx_untouched import Traces, take_out_of_caches, untouched
from bntool.graphs.walk import modules_in

#: control flow is followed through so many ways in any case, and through MOST_WAYS if they are short
SOME_WAYS = 16
#: nodes of all ways together
SHORT = 10_000


MANY = "can go more than {} ways"


@dataclass
class Way:
    """One way through a module: its graph, its sizes, the values hooks see."""

    graph: fx.Graph
    sizes: Sizes
    watched: dict[fx.Node, str]
    rebound: set[str] = field(default_factory=set)
    """Parameters and buffers in whose places the forward puts others."""
    read_unseen: set[str] = field(default_factory=set)
    """Parameters and buffers whose values the forward uses without the graph showing it."""
    asked: set[nn.Module] = field(default_factory=set)
    """Modules for which an nn.Identity in their place would be told another answer by `isinstance`."""
    given: dict[str, list[Inputs | None]] = field(default_factory=dict)
    """What convolutions and linears that have no bias and a forward of their own are given, by path."""
    more: bool = False
    """Whether a call does what a graph would not: keep values, switch autocast or the recording of gradients,
    run a `__call__` of the class's own, read what hooks have left."""
    further: list[str] = field(default_factory=list)
    """The `*args` and `**kwargs` that the forward takes, but not on this way."""
    prefix: str = ""
    """The path of the module that was traced, where it is a part of the model."""


@dataclass(frozen=True)
class Failed:
    """Why `path` cannot be traced, and whether that may be for want of known sizes."""

    path: str
    why: str = "cannot be traced"
    sizes_may_help: bool = True
    keeps: frozenset[str] = frozenset()
    """The attributes in which it keeps what its next call reads, if that is why."""


@dataclass
class Reading:
    """With which numbers that other inputs have others of the ways go on: the size of the batch, numbers and
    lengths of arguments by place and name.
    """

    batch: bool = False
    arguments: dict[tuple[int, str], Any] = field(default_factory=dict)
    """With their defaults."""


def ways_through(
    root: nn.Module,
    is_leaf: Callable[[nn.Module, str], bool],
    inputs: Inputs | None,
    *,
    sizes_decide: bool = True,
    as_given: bool = False,
    for_other_batches: bool = False,
    kept: Mapping[nn.Module, frozenset[str]] = MappingProxyType({}),
) -> list[Way] | Failed:
    """Every way through `root`, or the module that cannot be traced.

    Forks that depend on sizes go as with those of `inputs` where `sizes_decide`, else both ways. Arguments
    with defaults can be given or not; with `as_given` a graph takes none that `inputs` leave out. Where an
    argument's own number or length is read, there are ways for those next to it. Where a number is read that
    other batches have another of, there are ways for a batch of one and of one more; so there are where a
    constant slice takes another share of those, if the ways are to be right `for_other_batches` too. `kept`
    are attributes in which leaves keep what their next calls read: no other code may.
    """
    options: dict[str, Any] = {"sizes_decide": sizes_decide, "as_given": as_given, "kept": kept}
    ways, reads = _ways(root, is_leaf, inputs, **options)
    if isinstance(ways, Failed):
        return ways
    result = list(ways)
    batches = rebatched(inputs)[:-1] if reads.batch else []
    if for_other_batches:
        batches = batches_apart(root, [(w.graph, w.sizes) for w in ways], inputs, near_too=reads.batch)
    nearby = [(others, (LookupError, TypeError)) for others in revalued(inputs, reads.arguments)]
    for others, refusals in [*((others, (LookupError,)) for others in batches), *nearby]:
        more, _ = _ways(root, is_leaf, others, **options, refusals=refusals)
        if isinstance(more, Failed):
            return more
        result += more
    return result


def _ways(
    root: nn.Module,
    is_leaf: Callable[[nn.Module, str], bool],
    inputs: Inputs | None,
    *,
    sizes_decide: bool,
    as_given: bool,
    kept: Mapping[nn.Module, frozenset[str]],
    refusals: tuple[type[Exception], ...] = (),
) -> tuple[list[Way] | Failed, Reading]:
    """The ways, and which numbers they go on with.

    There may be none where there are `refusals`, which the model itself may raise for these inputs.
    """
    ways: list[Way] = []
    reads = Reading()
    todo: list[list[bool]] = [[]]
    sizes_may_help = False
    while todo:
        if len(ways) + len(todo) > (limit := _limit(ways)):
            return Failed("", MANY.format(limit), sizes_may_help), reads
        decisions = todo.pop()
        given = len(decisions)
        tracer = Tracer(is_leaf, decisions, inputs, sizes_decide, as_given)
        try:
            with untouched(root) as traces, out_of_reach(kept, tracer.refusal):
                tracer.changed, tracer.hooked = traces.changed, traces.hooked
                graph = tracer.run(root)
                if (tracer.keeps or traces.left()) and not goes_alike(again(tracer), tracer, root):
                    return _keeps(traces, root, kept), reads
        except Exception as error:
            refused = isinstance(error, refusals) or (
                (decisions or refusals)
                and not tracer.swallowed(error)
                and (cannot_happen(error, tracer.asked_in) or is_given_none(error, tracer))
            )
            if not refused:
                path = tracer.failed_in or ""
                endless = isinstance(error, EndlessWays)
                return Failed(path, MANY.format(MOST_WAYS)) if endless else Failed(path), reads
        else:
            assert tracer.sizes is not None
            seen, unseen = tracer.watch.seen, tracer.read_unseen
            more = tracer.switched or tracer.keeps or has_own_call(root) or hooks_feed_back(root)
            way = Way(graph, tracer.sizes, seen, traces.rebound, unseen, tracer.told, tracer.given, more)
            way.further = tracer.further
            ways.append(way)
        finally:
            take_out_of_caches(tracer.values)
        sizes_may_help |= tracer.asked_data
        reads.batch |= tracer.reads_batch
        reads.arguments |= tracer.reads_of
        todo.extend([*decisions[:i], False] for i in range(given, len(decisions)))
    return ways if ways or refusals else Failed(""), reads


def _keeps(traces: Traces, root: nn.Module, kept: Mapping[nn.Module, frozenset[str]]) -> Failed:
    """The part to blame is the one on which something is left, if one of them can be."""
    found = traces.left_on({path for path, module in modules_in(root) if module in kept})
    path, names = found or ("", frozenset[str]())
    return Failed(path, "goes another way when it is called again", sizes_may_help=False, keeps=names)


def is_whole(ways: Sequence[Way]) -> bool:
    """Whether one graph can stand for all that a model does."""
    return len(ways) == 1 and not ways[0].prefix and not ways[0].more


def goes_alike(second: Tracer, first: Tracer, root: nn.Module) -> bool:
    """Whether another call does the same: what the first one left may lead it elsewhere, or be in its way."""
    try:
        second.run(root)
    except Exception:
        return False
    asked, before = second.forks.asked, iter(first.forks.asked)
    same = all(question in before for question in asked)  # in that order
    fewer = second.reads_batch <= first.reads_batch and second.reads_of.keys() <= first.reads_of.keys()
    return same and fewer and second.is_like(first)


def again(tracer: Tracer) -> Tracer:
    """One that goes the same way, as far as that depends on the inputs."""
    t = tracer
    return Tracer(t.is_leaf, list(t.forks.decisions), t.inputs, t.sizes_decide, t.as_given)


def _limit(ways: list[Way]) -> int:
    """How many ways can be followed, going by those that have been."""
    return SOME_WAYS if sum(len(way.graph.nodes) for way in ways) > SHORT else MOST_WAYS


def cannot_happen(error: Exception, asked_in: Container[CodeType]) -> bool:
    """Whether the model itself raises on a way, and not the tracing: nobody goes it.

    What torch's own code raises when it is given a traced value may be for that it is one, unless it was
    `asked_in` there which way to go; so may what is said of types.
    """
    if isinstance(error, fx.proxy.TraceError):  # which is a ValueError
        return False
    if "'NoneType'" in str(error):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    frame = trace.tb_frame
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    if package in ("torch", "bntool") and any(isinstance(v, fx.Proxy) for v in frame.f_locals.values()):
        return isinstance(error, (AssertionError, ValueError)) and frame.f_code in asked_in
    if isinstance(error, (AssertionError, ValueError)):
        return True
    own = package not in FOREIGN - {"torchvision"}
    return own and not isinstance(error, (TypeError, AttributeError)) and _says_raise(trace)


def is_given_none(error: Exception, tracer: Tracer) -> bool:
    """Whether torch has refused a call because what it is for has been left out."""
    refused = tracer.sizes is not None and error is tracer.sizes.impossible
    return refused and "got (NoneType," in str(error)


def _says_raise(trace: TracebackType) -> bool:
    """Whether an error comes of a `raise`, and not of what the code does."""
    instructions = dis.get_instructions(trace.tb_frame.f_code)
    return any(i.offset == trace.tb_lasti and i.opname == "RAISE_VARARGS" for i in instructions)
