"""Tracing runs a forward: what that leaves on the modules is taken back."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

CONTAINERS = (dict, list, set, OrderedDict)
EMPTY: tuple[Any, ...] = ()


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[set[str]]:
    """Takes back what a traced forward leaves on its modules: cached values, counters, collected outputs.

    Gives the names of parameters and buffers in whose places the forward has put others.
    """
    before = [(p, m, {k: _held(v) for k, v in m.__dict__.items()}) for p, m in root.named_modules()]
    rebound: set[str] = set()
    try:
        yield rebound
    finally:
        for path, module, held in before:
            tensors = {**held["_parameters"][0], **held["_buffers"][0]}
            was = {**(held["_parameters"][1] or {}), **(held["_buffers"][1] or {})}
            rebound |= {f"{path}.{n}".lstrip(".") for n, t in was.items() if tensors.get(n) is not t}
            _restore(module.__dict__, held)


def _held(value: Any) -> tuple[Any, Any]:
    kind = type(value)
    if kind not in CONTAINERS:
        return value, None
    return value, kind(value) if value else EMPTY


def _restore(now: dict[str, Any], held: dict[str, tuple[Any, Any]]) -> None:
    if len(now) != len(held):
        for name in now.keys() - held.keys():
            del now[name]
    for name, (value, content) in held.items():
        if now.get(name) is not value:
            now[name] = value
        if content is None or (content is EMPTY and not value):
            continue
        value.clear()
        (value.extend if type(value) is list else value.update)(content)
