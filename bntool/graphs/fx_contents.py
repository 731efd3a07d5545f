"""What a forward may change deep inside of what modules hold: lists in dictionaries, objects, arrays."""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

#: values of these types never change
ATOMS = frozenset(
    (
        *(int, float, str, bool, complex, bytes, type(None), type, FunctionType, MethodType),
        *(torch.Size, torch.dtype, torch.device, Tensor, nn.Parameter),
    )
)
#: packages whose objects are no state of a model's, and whose code is none of the user's
FOREIGN = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "bntool"}
#: of so many things at most, and as many in each: a model may know the trainer that knows the data
MOST = 10_000


class Contents:
    """All that is reached from some values and can be changed, with what it holds now."""

    def __init__(self, values: Iterable[Any], modules: Iterable[nn.Module]) -> None:
        """The `modules` themselves are not looked into."""
        self.saved: list[tuple[Any, Any]] = []
        seen, todo = set(map(id, modules)), deque(values)
        while todo and len(seen) < MOST:
            value = todo.popleft()
            if type(value) in ATOMS or id(value) in seen:
                continue
            seen.add(id(value))
            held = _held(value)
            if held is None or len(held) > MOST:
                continue
            if type(value) is not tuple:
                self.saved.append((value, held))
            if isinstance(held, tuple):
                todo += held

    def changed(self) -> bool:
        return any(not _same(_held(value), held) for value, held in self.saved)

    def restore(self) -> None:
        for value, held in self.saved:
            if not _same(_held(value), held):
                _put(value, held)


def _held(value: Any) -> Any:
    """What it holds, flat; None for what does not count."""
    if isinstance(value, dict):
        return tuple(chain(*value.items()))
    if isinstance(value, list | tuple | set | deque):
        return tuple(value)
    if isinstance(value, np.ndarray):
        return value.copy() if value.ndim else None
    return tuple(chain(*vars(value).items())) if _counts(value) else None


def _counts(value: Any) -> bool:
    """Whether it is an object that may be part of a model's state."""
    if isinstance(value, type | Tensor | fx.Proxy | fx.Graph) or not hasattr(value, "__dict__"):
        return False
    package = str(type(value).__module__).partition(".")[0]
    return isinstance(value, nn.Module | SimpleNamespace) or package not in FOREIGN


def _same(now: Any, was: Any) -> bool:
    """Whether it is the very same that is held; of arrays, whether it is equal."""
    if isinstance(was, np.ndarray):
        return (now.dtype, now.shape) == (was.dtype, was.shape) and bool(now.tobytes() == was.tobytes())
    return len(now) == len(was) and all(map(operator.is_, now, was))


def _put(value: Any, held: Any) -> None:
    if isinstance(value, np.ndarray):
        value[...] = held
    elif isinstance(value, dict):
        _fill(value, held)
    elif isinstance(value, list | deque | set):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(held)
    else:
        _fill(vars(value), held)


def _fill(value: dict[Any, Any], held: tuple[Any, ...]) -> None:
    """(Past what a class of its own may make of that.)"""
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    kind.clear(value)
    for key, inside in zip(held[::2], held[1::2], strict=True):
        kind.__setitem__(value, key, inside)
