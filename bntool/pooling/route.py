"""A model's forward as a graph through which several batches can be taken in turns, without threads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from bntool.copying import own_inputs
from bntool.graphs.fx_sizes import attribute
from bntool.graphs.fx_trace import modes
from bntool.graphs.fx_untouched import untouched
from bntool.pooling.batches import Call

#: what is asked when a norm is about to run on a value; an answer stops the batch there
Ask = Callable[[nn.Module, Tensor], Any]
#: outputs besides tensors that can be compared; what an object's own comparison gives nobody knows
PLAIN = (int, float, complex, bool, str, type(None))


def traced(model: nn.Module) -> fx.Graph | None:
    """The graph, where torch.fx follows the whole model: then no value in it decides where the data goes."""
    try:
        with untouched(model):
            return OneMode().trace(model)
    except Exception:  # the tracer raises whatever the model's code does with a proxy
        return None


class OneMode(fx.Tracer):
    """Raises: TraceError where the model switches autocast, which the graph would not."""

    def __init__(self) -> None:
        super().__init__()
        self.casts = modes()[1:]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if modes()[1:] != self.casts:
            raise fx.proxy.TraceError("the forward switches autocast")
        return super().create_node(*args, **kwargs)


@dataclass(frozen=True)
class Route:
    """The way of every batch through `model`, which stops at `norms` when asked to.

    (`fx.Interpreter` would run the nodes too, and take 3 % of calibrate's throughput.)
    """

    model: nn.Module
    graph: fx.Graph
    norms: dict[nn.Module, str]

    def walk(self, call: Call, ask: Ask) -> Iterator[tuple[nn.Module, Any]]:
        """Take a batch along: yields (norm, answer) before norms where `ask` gives one; returns outputs."""
        values, result = self._given(call), None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            module = self._modules[node.target] if node.op == "call_module" else None
            if module in self.norms:
                answer = ask(module, args[0] if args else next(iter(kwargs.values())))
                if answer is not None:
                    yield module, answer
            result = values[node] = self._run(node, module, args, kwargs)
            for dead in self._read_last.get(node, ()):
                del values[dead]
        return result  # type: ignore[return-value]

    def agrees(self, call: Call, outputs: Any, trail: list[nn.Module]) -> bool:
        """Whether this gives the outputs that the model gave, through the same norms in the same order."""
        if any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules()):
            return False  # they are the user's, and see each batch once
        met: list[nn.Module] = []
        try:
            found = _finished(self.walk(call, lambda norm, _: met.append(norm)))
        except Exception:  # whatever runs: the model itself did
            return False
        return met == trail and _same(found, outputs)

    def _given(self, call: Call) -> dict[fx.Node, Any]:
        args, kwargs = own_inputs((call.args, call.kwargs))
        named = inspect.signature(self.model.forward).bind(*args, **kwargs).arguments
        return {node: named[str(node.target)] for node in self.graph.nodes if node.op == "placeholder"}

    def _run(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return args[0] if node.op == "output" else attribute(self.model, str(node.target))

    @cached_property
    def _modules(self) -> dict[Any, nn.Module]:
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def _read_last(self) -> dict[fx.Node, list[fx.Node]]:
        """What no later node reads, by the node that reads it last."""
        last = {value: node for node in self.graph.nodes for value in (*node.all_input_nodes, node)}
        result: dict[fx.Node, list[fx.Node]] = {}
        for value, node in last.items():
            result.setdefault(node, []).append(value)
        return result


def _finished(walk: Iterator[Any]) -> Any:
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


def _same(found: Any, wanted: Any) -> bool:
    (ours, shape), (theirs, other) = tree_flatten(found), tree_flatten(wanted)
    return shape == other and all(map(_equal, ours, theirs))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and isinstance(one, PLAIN) and one == other
