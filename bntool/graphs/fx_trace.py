"""nn.Module -> torch.fx graphs, one for each way its control flow can go.

Modules of a known exact type are leaves; a subclass with its own forward is traced into, so that what it does
is seen instead of believed. A truth value that depends on data forks: both outcomes are traced, each a graph.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, is_autocast_enabled, is_grad_enabled, nn
from torch.nn.modules.conv import _ConvNd

from bntool.graphs.fx_arguments import TakingArguments
from bntool.graphs.fx_baked import is_torchs_own
from bntool.graphs.fx_catching import catch
from bntool.graphs.fx_frozen import is_frozen_norm
from bntool.graphs.fx_hooks import has_hooks
from bntool.graphs.fx_identity import asks_identity
from bntool.graphs.fx_makers import makers_traced
from bntool.graphs.fx_reachable import functions_of
from bntool.graphs.fx_reads import Reads
from bntool.graphs.fx_shortcuts import LITERALS, set_arguments, tensor_attributes
from bntool.graphs.fx_sizes import RESHAPING, UNKNOWN, Inputs, Sizes, rebatched
from bntool.graphs.fx_told_apart import told_apart
from bntool.graphs.fx_upstream import is_of_argument, is_plain
from bntool.graphs.fx_values import IN_PLACE, Attribute, Reader, Value
from bntool.graphs.walk import modules_in

#: methods of lists and dictionaries that change nothing
READS = {"copy", "count", "index", "fromkeys", "get", "items", "keys", "values"}
#: those that do
CHANGES = {name for kind in (list, dict) for name in vars(kind) if name[0] != "_"} - READS
#: a forward that makes more calls does not end: what it waits for happens to no traced value
MOST_CALLS = 50_000


class Tracer(TakingArguments):
    """Traces one way through a module; `decisions` says how its forks go, and grows by those it meets."""

    proxy_buffer_attributes = True

    def __init__(
        self,
        is_leaf: Callable[[nn.Module, str], bool],
        decisions: list[bool],
        inputs: Inputs | None,
        sizes_decide: bool = True,
        as_given: bool = False,
    ) -> None:
        super().__init__(decisions, inputs, sizes_decide, as_given)
        self.is_leaf = is_leaf
        self.changed: Callable[[nn.Module], bool] = lambda module: False
        """Whether the forward has changed a module by now: what it is then, only its own forward shows."""
        self.hooked: Callable[[nn.Module], bool] = lambda module: False
        """Whether the forward has given a module hooks by now, which no graph would call."""
        self.catches = False
        """Whether code that is reached may catch what is raised: then it is raised while tracing."""
        self.path = ""
        self.failed_in: str | None = None
        self.frozen: set[nn.Module] = set()
        self.names: dict[int, str] = {}
        self.read_unseen: set[str] = set()
        """Parameters and buffers whose values the forward uses without the graph showing it."""
        self.told: set[nn.Module] = set()
        self.given: dict[str, list[Inputs | None]] = {}
        """What convolutions and linears that have no bias and a forward of their own are given, by path."""
        self.outside, self.switched = modes(), False
        """Whether the forward switches what no graph carries along: a mode of torch, hooks."""
        self.values: list[weakref.ref[fx.Proxy]] = []
        self.keeps = False
        """Whether tensors are still there when the forward is through: for its next call, or for others."""

    def run(self, root: nn.Module) -> fx.Graph:
        with only_new_garbage():
            return self._run(root)

    def _run(self, root: nn.Module) -> fx.Graph:
        modules, held = dict(modules_in(root)), dict[str, torch.Tensor]()
        for path, module in modules.items():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    full = self.names.setdefault(id(tensor), f"{path}.{name}" if path else name)
                    held[full] = tensor
        self.frozen = {m for m in modules.values() if is_frozen_norm(m)}
        self.sizes = Sizes(root, self.inputs, modules)
        self.other_sizes = [Sizes(root, inputs, modules) for inputs in rebatched(self.inputs)]
        for sizes in (self.sizes, *self.other_sizes):
            sizes.constants, sizes.held = self.sizes.constants, held
        classes = {type(m) for m in modules.values()}
        held_functions = [f for m in modules.values() for f in m.__dict__.values() if type(f) is FunctionType]
        functions = functions_of(classes, held_functions)
        with told_apart(classes, functions, self.told), makers_traced(), self._reads(root) as reads:
            self.catches, self.asks_identity = catch(functions), asks_identity(functions)
            graph = self._trace(root, modules, held)
        if self.gave_up or (self.catches and self.sizes.impossible):
            raise fx.proxy.TraceError(self.gave_up or "the forward catches what it raises")
        self.read_unseen = reads.names(root)
        self._mark_kept(modules.values())
        graph._tracer_cls = Reader
        for node in [n for n in graph.nodes if "left_out" in n.meta]:
            graph.erase_node(node)
        return graph

    def _reads(self, root: nn.Module) -> Reads:
        return Reads(root, self.names, lambda: self.measuring, self.refusal)

    def _mark_kept(self, modules: Iterable[nn.Module]) -> None:
        """Whoever holds a value when the forward is through: a later call, or somebody else, may read it.

        (A later call reads what is in the place of a buffer as any buffer, on the same way.)
        """
        if any(value() is not None for value in self.values):
            gc.collect()  # what only cycles hold, nobody does
        rebound = any(isinstance(value, fx.Proxy) for module in modules for value in module._buffers.values())
        for value in [value for made in self.values if (value := made()) is not None]:
            if self._derives_from_data(value.node):
                self.watch.seen[value.node] = "the model keeps this value"
                self.keeps |= not rebound

    def is_like(self, other: Tracer) -> bool:
        """Whether both have traced the same graph, of equal tensors, but for what it asks in vain."""
        ours, theirs = ({name: t for t, name in tracer.tensor_attrs.items()} for tracer in (self, other))
        names = [str(node.target) for node in self.graph.nodes if node.op == "get_attr"]
        equal = all(_equal(ours.get(name), theirs.get(name)) for name in names)
        return equal and _computed(self.graph) == _computed(other.graph)

    def _derives_from_data(self, node: fx.Node) -> bool:
        """Whether a value is another for other inputs: no size, and computed from more than parameters."""
        assert self.sizes is not None
        known = self.known(node)
        return (known is UNKNOWN or isinstance(known, torch.Tensor)) and not self.sizes.is_constant(node)

    def _trace(
        self, root: nn.Module, modules: dict[str, nn.Module], held: dict[str, torch.Tensor]
    ) -> fx.Graph:
        """The graph of `root`. (torch is given its forward, and later the module with what is known of it:
        given a module, it asks all attributes of all its parts whether they are tensors.) Those join what is
        `held`: the forward may put others in their places.
        """
        if isinstance(root, fx.GraphModule):  # which may have to compile its forward first
            return self.trace(root)
        attributes = tensor_attributes(modules)
        held |= {name: tensor for tensor, name in attributes.items() if name not in held}
        self.known_parts = root, {m: path for path, m in modules.items()}, attributes
        return self.trace(type(root).forward)

    def create_proxy(self, kind: str, target: Any, *more: Any, **named: Any) -> Any:
        value: Any = super().create_proxy(kind, target, *more, **named)
        if target in RESHAPING and isinstance(more[0][0], Value):
            more[0][0].node = value.node  # it is the result from here on
        if self.catches:
            self._raise_as_it_would(value.node)
        if target not in (operator.getitem, "get") or not is_of_argument(value.node):
            return value
        return self._or_none(value) if target == "get" else self._itself(value)

    def _raise_as_it_would(self, node: fx.Node) -> None:
        """Raises, once, what a call raises that cannot be given what it is: the forward goes no further."""
        assert self.sizes is not None
        before = self.sizes.impossible
        self.known(node)
        if before is None and self.sizes.impossible is not None:
            raise self.sizes.impossible

    def swallowed(self, error: Exception) -> bool:
        """Whether the forward has caught another error on its way to this one."""
        raised = self.sizes.impossible if self.catches and self.sizes is not None else None
        return raised is not None and error is not raised

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.frozen or self.is_leaf(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = Value(node, self)
        self.values.append(weakref.ref(value))
        return value

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *more: Any, **named: Any
    ) -> fx.Node:
        """(Without what fx notes of where a node came from.) Raises: TraceError."""
        if kind != "call_module" and kwargs.get("out") is not None:
            raise self.refusal("a call writes its result into another value")
        if (target in CHANGES or target in IN_PLACE.values()) and self._is_container(args[0]):
            raise self.refusal("the forward changes a list or a dictionary that it is given")
        if len(self.graph.nodes) == MOST_CALLS:
            raise self.refusal(f"the forward makes more than {MOST_CALLS} calls")
        node = self.graph.create_node(kind, target, (), {}, *more, **named)
        set_arguments(node, args, kwargs)
        if isinstance(node.type, str):  # quoted: a name that a pickled graph would not find
            node.type = None
        node.meta["at"] = self.path
        self.switched |= modes() != self.outside
        return node

    def _is_container(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and isinstance(self.known(value), (list, dict))

    def create_arg(self, a: Any) -> Any:
        """A tensor made while tracing is a constant of the graph (fx would put it on the user's model)."""
        kind = type(a)
        if kind is Value or kind is Attribute:
            return a.node
        if kind in LITERALS:
            return a
        if kind is tuple:
            return tuple([self.create_arg(part) for part in a])
        if kind is dict and all(type(name) is str for name in a):
            return {name: self.create_arg(part) for name, part in a.items()}
        if isinstance(a, np.generic):
            return a.item()
        if type(a) is torch.Tensor and id(a) not in self.names and a not in self.tensor_attrs:
            assert self.sizes is not None
            name = f"_tensor_constant{len(self.sizes.constants)}"
            self.sizes.constants[name] = a
            self.tensor_attrs[a] = name
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers read by traced code become values of the graph, one for each tensor."""
        name = self.names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None or self.measuring:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        made_here = self.known_parts is not None and m not in self.known_parts[1]
        if self.measuring or made_here:  # by the forward: a slice of a Sequential, an nn.Softmax(1)
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        outer, self.path = self.path, name
        try:
            return (
                self._called_watched(m, name, args, kwargs)
                if has_hooks(m)
                else self._called(m, name, args, kwargs)
            )
        except Exception:
            if self.failed_in is None and not self.is_leaf_module(m, name):  # else it is the caller's doing
                self.failed_in = name
            raise
        finally:
            self.path = outer

    def _called(self, m: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_leaf_module(m, name) and not self.changed(m):
            return self.create_proxy("call_module", name, args, kwargs)
        if type(m) is nn.ReLU and len(args) == 1 and not kwargs and is_torchs_own(m):
            return self.create_proxy("call_function", F.relu, args, {"inplace": m.inplace})  # as its forward
        if isinstance(m, (_ConvNd, nn.Linear)) and m.bias is None:
            self.given.setdefault(name, []).append(self._known_of((args, kwargs)))
        return m.forward(*args, **kwargs)

    def _called_watched(self, m: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.switched |= self.hooked(m)
        why = f"a hook on {name} sees this value"
        self.watch.mark((args, kwargs), why)
        result = self._called(m, name, args, kwargs)
        self.watch.mark(result, why)
        return result

    def _known_of(self, given: Inputs) -> Inputs | None:
        """What a module is given, without data, if all of it is known."""
        values: list[Any] = []

        def known(value: Any) -> Any:
            values.append(self.known(value.node) if isinstance(value, fx.Proxy) else value)
            return values[-1]

        found = fx.node.map_aggregate(given, known)
        return None if any(value is UNKNOWN for value in values) else found


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """Collections look at what is made from here on only: all there is in the process takes them long."""
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def modes() -> tuple[bool, ...]:
    """Modes of torch in which code runs: whether gradients are recorded, and where autocast is on.

    (Each node asks: by the functions themselves, and not by what stands for them while a forward is traced.)
    """
    return is_grad_enabled(), is_autocast_enabled("cpu"), is_autocast_enabled("cuda")


def _computed(graph: fx.Graph) -> list[Any]:
    """What a graph computes: equal for graphs that only name it otherwise, or ask more in vain."""
    kept: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        if any(user in kept for user in node.users) or not is_plain(node):
            kept[node] = len(kept)

    def calls(node: fx.Node) -> list[Any]:
        return [node.op, node.target, *fx.node.map_arg((node.args, node.kwargs), lambda n: ("node", kept[n]))]

    return [calls(node) for node in kept]


def _equal(one: Any, other: Any) -> bool:
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return one is other or (tensors and one.dtype == other.dtype and torch.equal(one, other))
