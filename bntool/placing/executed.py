"""The way a model went in one run, as a graph: what is known of code that cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bntool.graphs.fx_sizes import Sizes
from bntool.graphs.fx_ways import Way
from bntool.norms.submodules import names_of, state_kept
from bntool.pooling.batches import Call

IsWhole = Callable[[nn.Module], bool]


def executed_way(model: nn.Module, call: Call, is_whole: IsWhole) -> Way:
    """Every call of a module that `is_whole`, and of a function outside of those, with what it read.

    It is the way of `call` in eval mode: other inputs may go others.
    """
    log = _Log(model, is_whole)
    with state_kept(model), torch.no_grad(), ExitStack() as stack:
        model.eval()
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(log.enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(log.leave, with_kwargs=True).remove)
        with log:
            call.run(model)
    return Way(log.graph, Sizes(model, None), {})


class _Log(TorchFunctionMode):
    def __init__(self, model: nn.Module, is_whole: IsWhole) -> None:
        super().__init__()
        self.model, self.is_whole = model, is_whole
        self.graph, self.names = fx.Graph(), names_of(model)
        self.made: dict[int, tuple[Tensor, fx.Node]] = {}
        """Who made a tensor, by its id, which is its own as long as the tensor is held here."""
        self.running: list[nn.Module] = []
        self.stored = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self.model:
            for value in _tensors((args, kwargs)):
                self._makes(self.graph.placeholder(f"x{len(self.made)}"), [value])
        self.running.append(module)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        while self.running and self.running.pop() is not module:
            pass  # what raised, and whose error was caught
        if module is self.model:
            self._note("output", "output", output, ())
        elif self.is_whole(module) and not self._hidden():
            self._note(
                "call_module", self.names[module], (args, kwargs), _tensors(output), self.names[module]
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__.strip("_")
        made = _tensors(args[0] if name == "setitem" else result)
        if made and self.running and not self._hidden():
            self._note("call_method", name, (args, kwargs), made, self.names[self.running[-1]])
        return result

    def _hidden(self) -> bool:
        return any(self.is_whole(module) for module in self.running)

    def _note(self, op: str, target: str, read: Any, made: Iterable[Tensor], at: str = "") -> None:
        inputs = [node for value in _tensors(read) if (node := self._maker(value)) is not None]
        node = self.graph.create_node(op, target, tuple(inputs))
        node.meta["at"] = at
        self._makes(node, made)

    def _makes(self, node: fx.Node, values: Iterable[Tensor]) -> None:
        for value in values:
            self.made[id(value)] = (value, node)

    def _maker(self, value: Tensor) -> fx.Node | None:
        if id(value) not in self.made and id(value) in self.stored:
            self._makes(self.graph.create_node("get_attr", self.stored[id(value)]), [value])
        return self.made[id(value)][1] if id(value) in self.made else None


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
