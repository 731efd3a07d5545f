"""With inputs of what sizes are a model's parts called? One run on its example inputs tells, by hooks.

For parts of a model whose own code cannot be traced: nothing but running it says what they are called with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntool.algebra.affine import Blocked
from bntool.algebra.rules import NEED_SIZES
from bntool.graphs.fx_sizes import Inputs
from bntool.graphs.fx_untouched import untouched
from bntool.graphs.fx_writes import Undone
from bntool.graphs.running import outputs_of

UNREACHED = Blocked("its sizes are not known: no call of it is reached with the example inputs")
SEVERAL = Blocked("its sizes are not known: the code around it calls it with inputs of several sizes")


@dataclass
class Recording:
    """The inputs, as `meta` tensors, of every call of every module below a root; `failure` if it raised."""

    calls: dict[int, list[Inputs]] = field(default_factory=dict)
    failure: Blocked | None = None

    def of(self, part: nn.Module) -> Inputs | Blocked:
        """With what `part` is called, if always with the same sizes but for the batch."""
        calls = self.calls.get(id(part), [])
        if not calls:
            return UNREACHED if self.failure is None else self.failure
        first, *others = (_signature(call) for call in calls)
        return calls[0] if all(other == first for other in others) else SEVERAL

    def reaches_into(self, part: nn.Module) -> bool:
        """Whether what is inside a list of layers is called other than by calling it; unless a run shows that
        it is not, it may be.
        """
        calls = self.calls.get(id(part), [])
        inside = [self.calls.get(id(child), []) for child in part.children()]
        return self.failure is not None or any(len(c) != len(calls) for c in inside)


def record(root: nn.Module, inputs: Inputs | None) -> Recording:
    """One run of `root` in eval mode, which leaves it as it was."""
    found = Recording()
    if inputs is None:
        found.failure = NEED_SIZES
        return found
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    try:
        with _as_it_was(root), torch.no_grad(), ExitStack() as stack:
            for module in root.modules():
                module.training = False
                calls = found.calls.setdefault(id(module), [])
                handle = module.register_forward_pre_hook(_recorder(calls), with_kwargs=True)
                stack.callback(handle.remove)
            outputs_of(root, args, kwargs)
    except Exception as problem:
        found.failure = Blocked(f"its sizes are not known: the model raises {type(problem).__name__}")
    return found


def _recorder(calls: list[Inputs]) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), (args, kwargs)))

    return note


@contextmanager
def _as_it_was(root: nn.Module) -> Iterator[None]:
    """Modes, attributes and the values of tensors are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in root.buffers()]
    try:
        with untouched(root), Undone(root):
            yield
    finally:
        for buffer, value in before:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)


def _signature(call: Inputs) -> Any:
    """The structure of a call's inputs, and of every tensor its type and its sizes but for the batch."""
    leaves, structure = pytree.tree_flatten(call)
    sizes = [(leaf.ndim, leaf.shape[1:], leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]
    return str(structure), sizes
