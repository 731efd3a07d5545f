"""Functions of torch's that take sizes, numbers, dtypes or devices take traced ones, which they would not."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

#: their results are traced values
MAKERS = ("tensor", "as_tensor", "scalar_tensor", "empty", "zeros", "ones", "full", "rand", "randn")
LIMITS = ("finfo", "iinfo")
#: what they are given is read
READERS = ("is_autocast_enabled", "get_autocast_dtype", "_check")


@contextlib.contextmanager
def makers_traced() -> Iterator[None]:
    """(torch asks nobody else about them: their arguments are no tensors.)"""
    before = {name: vars(torch)[name] for name in (*MAKERS, *LIMITS, *READERS)}
    begin = torch.autocast.__init__
    meta: Any = type(torch.autograd.Variable)
    vars(torch).update({name: _traced(before[name]) for name in MAKERS})
    vars(torch).update({name: _class_like(before[name]) for name in LIMITS})
    vars(torch).update({name: _read(before[name]) for name in READERS})
    torch.autocast.__init__ = _read(begin)  # type: ignore[method-assign]
    meta.__call__ = _variable
    try:
        yield
    finally:
        vars(torch).update(before)
        torch.autocast.__init__ = begin  # type: ignore[method-assign]
        del meta.__call__


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        value = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
        if value is None:
            return function(*args, **kwargs)
        return value.tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _variable(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Old code wraps its tensors in `torch.autograd.Variable`, which gives tensors since torch 0.4."""
    wraps = args and isinstance(args[0], fx.Proxy) and cls is torch.autograd.Variable
    return args[0] if wraps else type.__call__(cls, *args, **kwargs)


def _class_like(kind: type) -> type:
    """A class whose call is traced, and which has the instances that `kind` has."""
    call = _traced(kind)
    meta = type("Like", (type,), {"__instancecheck__": lambda _, value: isinstance(value, kind)})
    return meta(kind.__name__, (), {"__new__": lambda _, *args: call(*args)})  # type: ignore[no-any-return]


def _read(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        plain = [_plain(value) for value in args], {name: _plain(value) for name, value in kwargs.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the way that is followed would do here
            return function(*plain[0], **plain[1])

    return call


def _plain(value: Any) -> Any:
    """What a traced value is known to be, if it is a number, a flag or a word."""
    if not isinstance(value, fx.Proxy):
        return value
    tracer: Any = value.tracer
    known = tracer.known(value.node)
    if known == "meta":  # the device on which sizes are worked out
        return "cpu"
    if isinstance(known, bool):  # which may depend on where a tensor is
        return bool(value)
    return tracer.read(value.node) if isinstance(known, int | float | str) else value
