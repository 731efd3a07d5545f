"""Tracing runs a forward: what that leaves on the modules is taken back."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from torch import nn

CONTAINERS = (dict, list, set, OrderedDict)


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[set[str]]:
    """Takes back what a traced forward leaves on its modules: cached values, counters, collected outputs.

    Gives the names of parameters and buffers in whose places the forward has put others.
    """
    before = [(path, Held(module)) for path, module in root.named_modules()]
    rebound: set[str] = set()
    try:
        yield rebound
    finally:
        for path, held in before:
            rebound |= {f"{path}.{name}".lstrip(".") for name in held.rebound()}
            held.restore()


class Held:
    """What one module holds: its attributes, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = module.__dict__.copy()
        containers = [value for value in self.attributes.values() if type(value) in CONTAINERS]
        self.full = [(value, value.copy()) for value in containers if value]
        self.empty = [value for value in containers if not value]

    def rebound(self) -> Iterator[str]:
        """Names of parameters and buffers that are others by now."""
        now = {**self.attributes["_parameters"], **self.attributes["_buffers"]}
        for value, was in self.full:
            if value is self.attributes["_parameters"] or value is self.attributes["_buffers"]:
                yield from (name for name, tensor in was.items() if now.get(name) is not tensor)

    def restore(self) -> None:
        now = self.module.__dict__
        if now.keys() != self.attributes.keys() or [*map(id, now.values())] != [
            *map(id, self.attributes.values())
        ]:
            now.clear()
            now.update(self.attributes)
        for value, was in self.full:
            value.clear()
            (value.extend if type(value) is list else value.update)(was)
        if any(self.empty):
            for value in self.empty:
                value.clear()
