"""Tracing runs a forward: what that leaves on the modules is taken back."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from bntool.graphs.walk import modules_in

CONTAINERS = (dict, list, set, OrderedDict)
WORDS = (bool, int, float, str)


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[Traces]:
    """Takes back what a traced forward leaves on its modules: cached values, counters, collected outputs."""
    traces = Traces([(path, Held(module)) for path, module in modules_in(root)])
    try:
        yield traces
    finally:
        traces.take_back()


class Traces:
    """What a forward leaves on the modules that it goes through."""

    def __init__(self, before: list[tuple[str, Held]]) -> None:
        self.before = before
        self.by_module: dict[nn.Module, Held] = {}
        self.rebound: set[str] = set()
        """Names of parameters and buffers in whose places it has put others, once it is all taken back."""

    def changed(self, module: nn.Module) -> bool:
        """Whether by now it has other attributes, parameters or buffers than before."""
        if not self.by_module:
            self.by_module = {held.module: held for _, held in self.before}
        held = self.by_module.get(module)
        return held is not None and held.changed()

    def counted(self) -> bool:
        """Whether a number, a flag or a word among the attributes is another by now."""
        return any(held.counted() for _, held in self.before)

    def take_back(self) -> None:
        for path, held in [(path, held) for path, held in self.before if not held.is_as_it_was()]:
            self.rebound |= {f"{path}.{name}".lstrip(".") for name in held.rebound()}
            held.restore()


class Held:
    """What one module holds: its attributes, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = module.__dict__.copy()
        containers = [value for value in self.attributes.values() if type(value) in CONTAINERS]
        self.full = [(value, value.copy()) for value in containers if value]
        self.empty = [value for value in containers if not value]
        members = (self.attributes["_parameters"], self.attributes["_buffers"])
        self.tensors = [pair for pair in self.full if pair[0] is members[0] or pair[0] is members[1]]

    def rebound(self) -> list[str]:
        """Names of parameters and buffers that are others by now."""
        if all(_same(now, was) for now, was in self.tensors):
            return []
        now = {**self.attributes["_parameters"], **self.attributes["_buffers"]}
        before = [item for _, was in self.tensors for item in was.items()]
        return [name for name, tensor in before if now.get(name) is not tensor]

    def changed(self) -> bool:
        return not self._has_its_attributes() or not all(_same(now, was) for now, was in self.tensors)

    def is_as_it_was(self) -> bool:
        """Whether neither it nor what its containers hold is another; False where that is not asked."""
        if any(self.empty) or not self._has_its_attributes():
            return False
        return all(isinstance(value, dict) and _same(value, was) for value, was in self.full)

    def counted(self) -> bool:
        if self._has_its_attributes():
            return False
        now = {name: value for name, value in self.module.__dict__.items() if type(value) in WORDS}
        return any(was != now.get(name, was) for name, was in self.attributes.items() if type(was) in WORDS)

    def _has_its_attributes(self) -> bool:
        return _same(self.module.__dict__, self.attributes)

    def restore(self) -> None:
        if not self._has_its_attributes():
            self.module.__dict__.clear()
            self.module.__dict__.update(self.attributes)
        for value, was in self.full:
            value.clear()
            (value.extend if type(value) is list else value.update)(was)
        for value in self.empty:
            value.clear()


def _same(now: dict[str, Any], was: dict[str, Any]) -> bool:
    """Whether a dictionary holds the very objects that it held."""
    return all(map(operator.is_, now.values(), was.values())) and now.keys() == was.keys()
