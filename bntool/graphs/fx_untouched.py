"""Tracing runs a forward: what that leaves on the modules is taken back."""

from __future__ import annotations

import contextlib
import gc
import operator
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from torch import fx, nn

from bntool.graphs.fx_contents import ATOMS, Contents
from bntool.graphs.walk import CONTAINERS, MEMBERS, modules_in

#: a container and what was in it
Saved = tuple[Any, Any]
#: of `MEMBERS`, those in which it holds its tensors
TENSORS = ("_parameters", "_buffers")
WORDS = (bool, int, float, str)
OF_ALL_MODULES = frozenset(nn.Module().__dict__)


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[Traces]:
    """Takes back what a traced forward leaves on its modules: cached values, counters, collected outputs."""
    traces = Traces(modules_in(root))
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
    """What a forward leaves on the modules that it goes through.

    (Mostly it leaves nothing: all modules are looked at together, and each by itself only where there is
    something. A large model has thousands.)
    """

    def __init__(self, modules: list[tuple[str, nn.Module]]) -> None:
        self.modules = modules
        self.rebound: set[str] = set()
        """Names of parameters and buffers in whose places it has put others, once it is all taken back."""
        self._now = [module.__dict__ for _, module in modules]
        self._attributes = [attributes.copy() for attributes in self._now]
        values = chain.from_iterable(map(dict.values, self._attributes))
        others = [v for v in values if type(v) not in ATOMS]
        containers = [v for v in others if type(v) in CONTAINERS]
        self._empty = [v for v in containers if not v]
        self._full = [v for v in containers if v]
        self._was = {id(v): v.copy() for v in self._full}
        members = {id(attributes[name]) for attributes in self._attributes for name in MEMBERS}
        inside = chain.from_iterable(_values(v) for v in self._full if id(v) not in members)
        deep = [v for v in chain((v for v in others if type(v) not in CONTAINERS), inside) if _is_deep(v)]
        self.deep = Contents(deep, [module for _, module in modules] if deep else [])
        self._places: dict[nn.Module, int] = {}
        self._untouched = False
        """Whether that was seen when all had been run."""

    @cached_property
    def before(self) -> list[tuple[str, Held]]:
        pairs = zip(self.modules, self._attributes, strict=True)
        return [(path, Held(module, attributes, self._was)) for (path, module), attributes in pairs]

    def _attributes_of(self, module: nn.Module) -> dict[str, Any] | None:
        """Those that it had, if it was there."""
        if not self._places:
            self._places = {module: place for place, (_, module) in enumerate(self.modules)}
        place = self._places.get(module)
        return None if place is None else self._attributes[place]

    def changed(self, module: nn.Module) -> bool:
        """Whether by now it has other attributes, parameters or buffers than before."""
        had = self._attributes_of(module)
        if had is None:
            return False
        tensors = [held for name in TENSORS if (held := had[name]) and id(held) in self._was]
        return not _same(module.__dict__, had) or not all(_same(h, self._was[id(h)]) for h in tensors)

    def hooked(self, module: nn.Module) -> bool:
        """Whether by now it has hooks that it had not."""
        held = (self._attributes_of(module) or {}).values()
        return any(type(v) in CONTAINERS and v and id(v) not in self._was for v in held)

    def _none(self) -> bool:
        """Whether every module is as it was, with what its containers hold."""
        full = [self._was[id(v)] for v in self._full]
        return not any(self._empty) and _all_same(self._now, self._attributes) and _all_same(self._full, full)

    def left(self) -> bool:
        """Whether a later call could find anything else than this one did. (Asked when all has been run.)"""
        if self.deep.changed():
            return True
        self._untouched = self._none()
        return not self._untouched and any(held.left() for _, held in self.before)

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
        if self._untouched:
            return
        self.deep.restore()
        if self._none():
            return
        for path, held in [(path, held) for path, held in self.before if not held.is_as_it_was()]:
            self.rebound |= {f"{path}.{name}".lstrip(".") for name in held.rebound()}
            held.restore()


class Held:
    """What one module held: its attributes, and what was in those that are containers, by their ids."""

    def __init__(self, module: nn.Module, attributes: dict[str, Any], was: Mapping[int, Any]) -> None:
        self.module, self.attributes = module, attributes
        containers = [value for value in attributes.values() if type(value) in CONTAINERS]
        self.full = [(value, was[id(value)]) for value in containers if id(value) in was]
        self.empty = [value for value in containers if id(value) not in was]
        tensors = [attributes[name] for name in TENSORS]
        self.tensors, self.others = list[Saved](), list[Saved]()
        for saved in self.full:
            (self.tensors if any(saved[0] is held for held in tensors) else self.others).append(saved)

    def rebound(self) -> list[str]:
        """Names of parameters and buffers that are others by now."""
        if all(_same(now, was) for now, was in self.tensors):
            return []
        now = {**self.attributes["_parameters"], **self.attributes["_buffers"]}
        before = [item for _, was in self.tensors for item in was.items()]
        return [name for name, tensor in before if now.get(name) is not tensor]

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


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_deep(value: Any) -> bool:
    """Whether it may hold what changes."""
    kind = type(value)
    return kind not in ATOMS and (kind is not tuple or not ATOMS.issuperset(map(type, value)))


def _all_same(now: Sequence[Any], was: Sequence[Any]) -> bool:
    """`_same_inside` of many containers: each pair would take longer to take up than to compare."""
    if any(isinstance(value, set) for value in now):  # two equal ones may be in different orders
        return all(map(_same_inside, now, was))
    if list(map(len, now)) != list(map(len, was)):
        return False
    values = (chain.from_iterable(map(_values, containers)) for containers in (now, was))
    return all(map(operator.is_, chain.from_iterable(now), chain.from_iterable(was))) and all(
        map(operator.is_, *values)
    )


def _same(now: dict[str, Any], was: dict[str, Any]) -> bool:
    """Whether a dictionary holds the very objects that it held, under the same keys."""
    return all(map(operator.is_, now.values(), was.values())) and now.keys() == was.keys()


def _same_inside(now: Any, was: Any) -> bool:
    """Whether a container holds the very objects that it held, in that order."""
    if isinstance(now, dict):
        return _same(now, was) and all(map(operator.is_, now, was))
    if isinstance(now, set):
        return set(map(id, now)) == set(map(id, was))
    return len(now) == len(was) and all(map(operator.is_, now, was))
