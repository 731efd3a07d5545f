"""What an op makes of tensors without data depends on their sizes and types alone: it is worked out once.

(torch works many of these out in Python, a millisecond each; a model repeats its blocks, and has several ways
and batch sizes.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
MOST = 20_000

_remembered: dict[Hashable, Any] = {}


def remembered(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
    """What `run` gives, which is what `target` makes of these arguments, or gave for such before.

    Functions that are not torch's or Python's own may go by other things too.
    """
    name = target if isinstance(target, str) else str(getattr(target, "__name__", "_"))
    own = isinstance(target, (str, BuiltinFunctionType, MethodDescriptorType))
    home = "torch" if own else str(getattr(target, "__module__", ""))
    if home.partition(".")[0] != "torch" or name.partition(".")[0].endswith("_"):  # may resize its argument
        return run()
    try:
        key = (target, torch.get_default_dtype(), _described(args), _described(kwargs))
        hash(key)
    except TypeError:
        return run()
    if key not in _remembered:
        if len(_remembered) >= MOST:
            _remembered.clear()
        _remembered[key] = run()
    return _alike(_remembered[key])


def _described(value: Any) -> Hashable:
    """Equal for arguments of which the same is made. Raises: TypeError for what may hold more."""
    if type(value) is torch.Tensor and value.is_meta:
        return (torch.Tensor, value.shape, value.stride(), value.dtype)
    if isinstance(value, PLAIN):
        return (type(value), value)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_described, value))
    if isinstance(value, dict):
        return (dict, *((name, _described(v)) for name, v in value.items()))
    if isinstance(value, slice):
        return (slice, *map(_described, (value.start, value.stop, value.step)))
    if value is Ellipsis:
        return "..."
    raise TypeError(f"a {type(value).__name__} may hold anything")


def _alike(value: Any) -> Any:
    """A tensor of its own, whose sizes an op may change in place."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(_alike(part) for part in value)
    return value
