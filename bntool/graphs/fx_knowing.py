"""What a traced forward is told when it asks what a value is, and which way it goes then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx

from bntool.graphs.fx_forks import Forks
from bntool.graphs.fx_sizes import UNKNOWN, Inputs, Sizes
from bntool.graphs.fx_upstream import (
    asks_circumstances,
    asks_for_optional,
    is_plain,
    question,
    upstream,
)


@dataclass
class Watch:
    """Values that a hook sees: fx nodes -> the sentence that says so."""

    seen: dict[fx.Node, str] = field(default_factory=dict)

    def mark(self, values: Any, why: str) -> None:
        fx.node.map_aggregate(values, lambda v: self._one(v, why))

    def _one(self, value: Any, why: str) -> Any:
        if isinstance(value, fx.Proxy):
            self.seen[value.node] = why
        return value


class Knowing(fx.Tracer):
    """A tracer that knows sizes; `decisions` says how forks go, and grows by those it meets."""

    def __init__(self, decisions: list[bool], inputs: Inputs | None, sizes_decide: bool) -> None:
        super().__init__(param_shapes_constant=False)
        self.forks, self.inputs, self.sizes_decide = Forks(decisions), inputs, sizes_decide
        self.watch = Watch()
        self.sizes: Sizes | None = None
        self.other_sizes: list[Sizes] = []
        self.measuring = False
        """Whether sizes are being worked out: modules then run as they are."""
        self.gave_up = ""
        """Why tracing could not go on, which the forward may have caught."""
        self.asked_in: set[CodeType] = set()
        """Where in the code forks are."""
        self.asked_data = False
        """Whether a fork was at anything but an argument that may be left out."""
        self.reads_batch = False
        """Whether the forward goes on with a number, or a length, that would be another for other batches."""
        self.reads_of: dict[tuple[int, str], Any] = {}
        """The arguments (place, name -> default) with whose own numbers or lengths the forward goes on."""

    def refusal(self, why: str) -> Exception:
        """What to raise where tracing cannot go on; the forward must not, either."""
        if not self.measuring:
            self.gave_up = why
        return fx.proxy.TraceError(why)

    def known(self, node: fx.Node) -> Any:
        assert self.sizes is not None
        self.measuring = True
        try:
            return self.sizes.value(node)
        finally:
            self.measuring = False

    def read(self, node: fx.Node, what: Callable[[Any], Any] = lambda value: value) -> Any:
        """`what` is read of a value whose size is known: the graph will hold it as it is for these inputs."""
        if self.asks_circumstances(node):
            raise self.refusal("it goes on with where a tensor is")
        found = what(self.known(node))
        self.reads_of |= self._arguments_in(node)
        others = [o for o in self._for_other_batches(node) if o is not UNKNOWN]
        self.reads_batch |= any(what(o) != found for o in others)
        return found

    def _for_other_batches(self, node: fx.Node) -> list[Any]:
        self.measuring = True
        try:
            return [sizes.value(node) for sizes in self.other_sizes]
        finally:
            self.measuring = False

    def is_for_all_batches(self, node: fx.Node) -> bool:
        """Whether it is a number that is known to be the same for batches of other sizes."""
        known, others = self.known(node), self._for_other_batches(node)
        return type(known) is int and bool(others) and all(type(o) is int and o == known for o in others)

    def is_tensor(self, node: fx.Node) -> bool:
        known = self.known(node)
        return isinstance(known, torch.Tensor) or (
            known is UNKNOWN and node.op in ("placeholder", "call_module")
        )

    is_plain = staticmethod(is_plain)

    def asks_circumstances(self, node: fx.Node) -> bool:
        return asks_circumstances(node, self.is_tensor)

    def to_bool(self, obj: fx.Proxy) -> bool:
        asking = sys._getframe(2).f_code  # this is called by the value's own __bool__
        if self.asks_circumstances(obj.node):
            self.asked_in.add(asking)
            return self.forks.at(obj.node, question(obj.node, self.is_tensor))
        known = self.known(obj.node)
        if known is not UNKNOWN and not isinstance(known, torch.Tensor) and self._decides(obj, known):
            return bool(known)
        self.asked_in.add(asking)
        self.asked_data |= not asks_for_optional(obj.node, self._is_sized)
        self.watch.mark(obj, "which way the forward goes depends on this value")
        return self.forks.at(obj.node)

    def _decides(self, obj: fx.Proxy, known: Any) -> bool:
        """Whether a decision is the same whatever the inputs, or at least for other sizes of the batch."""
        assert self.sizes is not None
        if self.sizes.is_constant(obj.node):
            return True
        optional = asks_for_optional(obj.node, self._is_sized)
        if not self.sizes_decide or optional or self._arguments_in(obj.node):
            return False
        return self._whatever_the_batch(obj, known)

    def _is_sized(self, node: fx.Node) -> bool:
        return isinstance(self.known(node), torch.Tensor)

    def _arguments_in(self, node: fx.Node) -> dict[tuple[int, str], Any]:
        """The arguments, and their defaults, from whose own values, not from tensors' sizes, one derives."""
        found = list(upstream(node, lambda value: not self._is_sized(value)))
        given = [n for n in found if n.op == "placeholder"]
        places = self.graph.find_nodes(op="placeholder") if given else []
        return {(places.index(n), str(n.target)): n.args[0] if n.args else None for n in given}

    def _whatever_the_batch(self, obj: fx.Proxy, known: Any) -> bool:
        """Whether it is the same for batches of one, of one more, of many."""
        others = self._for_other_batches(obj.node)
        return all(o is UNKNOWN or isinstance(o, torch.Tensor) or bool(o) == bool(known) for o in others)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        known = self.known(obj.node)
        if isinstance(known, (tuple, list)) or (isinstance(known, torch.Tensor) and known.ndim):
            return iter([obj[i] for i in range(self.read(obj.node, len))])  # type: ignore[index]
        raise self.refusal("a value of unknown length is gone through")
