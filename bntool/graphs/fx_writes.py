"""Calls of torch that write to tensors, as a mode that sees all calls sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bntool.graphs.fx_values import IN_PLACE, says_in_place
from bntool.graphs.walk import modules_in


def written(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call writes to, or puts other data in."""
    name = getattr(function, "__name__", "")
    writes = name in IN_PLACE or name == "__set__" or kwargs.get("inplace") is True
    if writes or says_in_place(name):
        return [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)][:1]
    out = kwargs.get("out")
    return [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]


def memory(tensor: Tensor) -> int:
    """Where its memory is; 0 where it has none."""
    with suppress(RuntimeError, NotImplementedError):  # as sparse and other tensors have
        return tensor.untyped_storage().data_ptr()
    return 0


def tensors_of(root: nn.Module) -> Iterable[Tensor]:
    """The parameters, buffers and plain attributes of its modules."""
    for _, module in modules_in(root):
        held = (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values())
        lists = [v for v in held if isinstance(v, list | tuple | dict)]
        inside = [i for v in lists for i in (v.values() if isinstance(v, dict) else v)]
        yield from (t for t in (*held, *inside) if isinstance(t, Tensor))


def _as_written() -> AbstractContextManager[Any]:
    """What is compiled runs as it is written: torch.compile would have to compile the mode along."""
    compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class Undone(TorchFunctionMode):
    """What calls write to the tensors that a model holds is taken back at the end."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.held = {memory(t) for t in tensors_of(root)} - {0}
        self.stance = _as_written()
        self.before: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        """Each tensor that is written to, its memory, and what was in that."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in written(function, args, kwargs or {}):
            if id(tensor) not in self.before and memory(tensor) in self.held:
                self.before[id(tensor)] = (tensor, tensor.detach(), tensor.detach().clone())
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        self.stance.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self.stance.__exit__(*raised)
        for tensor, place, value in reversed(self.before.values()):
            with torch.inference_mode(place.is_inference()), torch.no_grad():
                place.copy_(value)
            if memory(tensor) != memory(place):
                tensor.data = place
