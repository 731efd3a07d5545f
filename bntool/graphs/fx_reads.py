"""Parameters that a forward reads past the tracer, as `sum(p.norm() for p in self.parameters())` does."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Reads(TorchFunctionMode):
    """Collects the ids of those tensors among `tensors` whose values are computed with while it is active.

    `paused` says when what happens is not the forward's doing. (A traced value stands for what an attribute
    holds, so the tensor itself is only met where code came by it otherwise.)
    """

    def __init__(self, tensors: Container[int], paused: Callable[[], bool]) -> None:
        super().__init__()
        self.tensors, self.paused = tensors, paused
        self.found: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        read = [id(a) for a in _tensors((*args, *(kwargs or {}).values())) if id(a) in self.tensors]
        if read and _is_value(result) and not self.paused():
            self.found.update(read)
        return result

    def names(self, root: nn.Module) -> set[str]:
        """All names that `root` has for them."""
        if not self.found:
            return set()
        members = [
            (path, {**module._parameters, **module._buffers})
            for path, module in root.named_modules(remove_duplicate=False)
        ]
        return {
            f"{path}.{n}".lstrip(".")
            for path, held in members
            for n, t in held.items()
            if id(t) in self.found
        }


def _tensors(arguments: tuple[Any, ...]) -> list[Any]:
    """Tensors among arguments, and in lists of them."""
    lists = [a for a in arguments if isinstance(a, list | tuple)]
    return [a for a in (*arguments, *(v for values in lists for v in values)) if isinstance(a, Tensor)]


def _is_value(result: Any) -> bool:
    """Whether a result tells what is in a tensor, and not its size, dtype or device."""
    return isinstance(result, Tensor | float | list) or type(result).__module__ == "numpy"
