"""Tracing runs a forward: what that leaves on the modules is taken back."""

from __future__ import annotations

import contextlib
import gc
import operator
import weakref
from collections.abc import Container, Iterator
from typing import Any

from torch import fx, nn

from bntool.graphs.fx_contents import ATOMS, Contents
from bntool.graphs.walk import CONTAINERS, MEMBERS, modules_in

#: a container and what was in it
Saved = tuple[Any, Any]
WORDS = (bool, int, float, str)
OF_ALL_MODULES = frozenset(nn.Module().__dict__)


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[Traces]:
    """Takes back what a traced forward leaves on its modules: cached values, counters, collected outputs."""
    traces = Traces([(path, Held(module)) for path, module in modules_in(root)])
    try:
        yield traces
    finally:
        traces.take_back()


def take_out_of_caches(values: list[weakref.ref[fx.Proxy]]) -> None:
    """Traced values that are still there are taken out of dictionaries in which the user's code keeps them by
    sizes, devices and the like: it would find them there when the model itself is run.
    """
    left = [value for made in values if (value := made()) is not None]
    kept = {id(value) for value in left}
    for holder in gc.get_referrers(*left) if left else []:
        if type(holder) is dict:
            for key in [k for k, v in holder.items() if id(v) in kept and not isinstance(k, str)]:
                del holder[key]


class Traces:
    """What a forward leaves on the modules that it goes through."""

    def __init__(self, before: list[tuple[str, Held]]) -> None:
        self.before = before
        self.by_module: dict[nn.Module, Held] = {}
        self.rebound: set[str] = set()
        """Names of parameters and buffers in whose places it has put others, once it is all taken back."""
        deep = [value for _, held in before for value in held.deep()]
        self.deep = Contents(deep, [held.module for _, held in before] if deep else [])

    def _held(self, module: nn.Module) -> Held | None:
        if not self.by_module:
            self.by_module = {held.module: held for _, held in self.before}
        return self.by_module.get(module)

    def changed(self, module: nn.Module) -> bool:
        """Whether by now it has other attributes, parameters or buffers than before."""
        held = self._held(module)
        return held is not None and held.changed()

    def hooked(self, module: nn.Module) -> bool:
        """Whether by now it has hooks that it had not."""
        held = self._held(module)
        return held is not None and any(held.empty)

    def left(self) -> bool:
        """Whether a later call could find anything else than this one did."""
        return any(held.left() for _, held in self.before) or self.deep.changed()

    def left_on(self, but: Container[str]) -> tuple[str, frozenset[str]] | None:
        """A part of the root, `but` for some, that is not as it was, and the attributes that are not; None if
        there is none, or if others may hold what has changed.
        """
        changed = [(path, held) for path, held in self.before if not held.is_as_it_was()]
        containers = [id(value) for _, held in changed for value in held.changed_containers()]
        if self.deep.changed() or len(set(containers)) < len(containers):
            return None
        of_parts = [(path, held.names_left()) for path, held in changed if path and path not in but]
        return next(((path, names) for path, names in of_parts if not names & OF_ALL_MODULES), None)

    def take_back(self) -> None:
        self.deep.restore()
        for path, held in [(path, held) for path, held in self.before if not held.is_as_it_was()]:
            self.rebound |= {f"{path}.{name}".lstrip(".") for name in held.rebound()}
            held.restore()


class Held:
    """What one module holds: its attributes, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = module.__dict__.copy()
        others = [value for value in self.attributes.values() if type(value) not in ATOMS]
        containers = [value for value in others if type(value) in CONTAINERS]
        self.deeper = [value for value in others if type(value) not in CONTAINERS]
        self.full = [(value, value.copy()) for value in containers if value]
        self.empty = [value for value in containers if not value]
        parameters, buffers = self.attributes["_parameters"], self.attributes["_buffers"]
        self.tensors, self.others = list[Saved](), list[Saved]()
        for saved in self.full:
            of_tensors = saved[0] is parameters or saved[0] is buffers
            (self.tensors if of_tensors else self.others).append(saved)

    def deep(self) -> list[Any]:
        """What is reached through its attributes but is none of them, nor of their contents."""
        own = [v for v, _ in self.others if v is not self.attributes["_modules"]]
        inside = [i for v in own for i in (v.values() if isinstance(v, dict) else v) if type(i) not in ATOMS]
        found = (*self.deeper, *inside)
        return [v for v in found if type(v) is not tuple or not ATOMS.issuperset(map(type, v))]

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
        """Whether neither it nor what its containers hold is another."""
        return self._has_its_attributes() and self._has_its_contents()

    def left(self) -> bool:
        """Whether there is anything else than before, but for another number, flag or word that is equal.

        (Whether a later call may find other traced values is asked of those themselves. It reads what is in
        the place of a parameter or buffer as any of them, on the same way.)
        """
        if self.is_as_it_was():
            return False
        others = [*self.others, *((value, type(value)()) for value in self.empty)]
        if not all(_same_inside(_without_traced(value, was), was) for value, was in others):
            return True
        if any(now.keys() != was.keys() for now, was in self.tensors):
            return True
        if self._has_its_attributes():
            return False
        now = {name: v for name, v in self.module.__dict__.items() if not isinstance(v, fx.Proxy)}
        if not now.keys() <= self.attributes.keys():
            return True
        gone = self.attributes.keys() - self.module.__dict__.keys()
        pairs = [(v, self.attributes[name]) for name, v in now.items()] + [(None, ...) for _ in gone]
        return any(a is not b and not (type(a) is type(b) and type(a) in WORDS and a == b) for a, b in pairs)

    def changed_containers(self) -> list[Any]:
        """Those of its attributes' that hold something else by now."""
        before = [*self.full, *((value, type(value)()) for value in self.empty)]
        return [value for value, was in before if not _same_inside(value, was)]

    def names_left(self) -> frozenset[str]:
        """The names of its attributes, parameters, buffers and parts that are others by now."""
        saved = {id(value): was for value, was in self.full}
        now, before = dict(self.module.__dict__), dict(self.attributes)
        for members in MEMBERS:
            now |= self.module.__dict__[members]
            before |= saved.get(id(self.attributes[members]), {})
        others = {
            name for name in now.keys() | before.keys() if now.get(name, ...) is not before.get(name, ...)
        }
        changed = set(map(id, self.changed_containers()))
        return frozenset(others | {n for n, v in self.attributes.items() if id(v) in changed} - set(MEMBERS))

    def _has_its_attributes(self) -> bool:
        return _same(self.module.__dict__, self.attributes)

    def _has_its_contents(self) -> bool:
        return not any(self.empty) and all(_same_inside(value, was) for value, was in self.full)

    def restore(self) -> None:
        if not self._has_its_attributes():
            self.module.__dict__.clear()
            self.module.__dict__.update(self.attributes)
        for value, was in self.full:
            value.clear()
            (value.extend if type(value) is list else value.update)(was)
        for value in self.empty:
            value.clear()


def _without_traced(now: Any, was: Any) -> Any:
    """What a container holds besides traced values; of those in the place of others, those others."""
    if not isinstance(now, dict):
        return type(now)(value for value in now if not isinstance(value, fx.Proxy))
    kept = {key: was.get(key, v) if isinstance(v, fx.Proxy) else v for key, v in now.items()}
    return {key: value for key, value in kept.items() if not isinstance(value, fx.Proxy)}


def _same(now: dict[str, Any], was: dict[str, Any]) -> bool:
    """Whether a dictionary holds the very objects that it held."""
    return all(map(operator.is_, now.values(), was.values())) and now.keys() == was.keys()


def _same_inside(now: Any, was: Any) -> bool:
    """Whether a container holds the very objects that it held, in that order."""
    if isinstance(now, dict):
        return _same(now, was) and all(map(operator.is_, now, was))
    if isinstance(now, set):
        return set(map(id, now)) == set(map(id, was))
    return len(now) == len(was) and all(map(operator.is_, now, was))
