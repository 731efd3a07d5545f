"""Parameters that a forward reads past the tracer, as `sum(p.norm() for p in self.parameters())` does."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bntool.graphs.fx_writes import memory, tensors_of, written
from bntool.graphs.walk import modules_in


class Reads(TorchFunctionMode):
    """Collects which of the tensors that `root` holds are computed with while it is active.

    `paused` says when what happens is not the forward's doing. (A traced value stands for what an attribute
    holds, so the tensor itself is only met where code came by it otherwise, maybe as another tensor with the
    same memory.) Where it writes to what `root` holds, which a trace would do for real, raises what `refusal`
    makes of the reason.
    """

    def __init__(
        self,
        root: nn.Module,
        tensors: Container[int],
        paused: Callable[[], bool],
        refusal: Callable[[str], Exception],
    ) -> None:
        super().__init__()
        self.root, self.tensors, self.paused, self.refusal = root, tensors, paused, refusal
        self.found: set[int] = set()
        """Ids, or where the memory is of what is none of the `tensors` but may share it with one."""

    @cached_property
    def held(self) -> set[int]:
        return {memory(t) for t in tensors_of(self.root)} - {0}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused():
            return function(*args, **(kwargs or {}))
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        if given and any(memory(t) in self.held for t in written(function, args, kwargs or {})):
            raise self.refusal("a forward writes to a tensor that the model holds")
        result = function(*args, **(kwargs or {}))
        if given and _is_value(result):
            self.found |= {id(t) if id(t) in self.tensors else memory(t) for t in given} - {0}
        return result

    def names(self, root: nn.Module) -> set[str]:
        """All names that `root` has for them."""
        if not self.found:
            return set()
        members = [
            (path, {**module._parameters, **module._buffers})
            for path, module in modules_in(root, every_name=True)
        ]
        return {
            f"{path}.{n}".lstrip(".")
            for path, held in members
            for n, t in held.items()
            if t is not None and (id(t) in self.found or memory(t) in self.found)
        }


def _tensors(arguments: tuple[Any, ...]) -> list[Any]:
    """Tensors among arguments, and in lists of them."""
    lists = [a for a in arguments if isinstance(a, list | tuple)]
    return [a for a in (*arguments, *(v for values in lists for v in values)) if isinstance(a, Tensor)]


def _is_value(result: Any) -> bool:
    """Whether a result tells what is in a tensor, and not its size, dtype or device."""
    return isinstance(result, Tensor | float | list) or type(result).__module__ == "numpy"
