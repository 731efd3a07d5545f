"""May a norm go without an in-place op reaching further than it did? Without it its output is its input."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bntool.algebra.affine import Blocked
from bntool.graphs.base import SHARING, Graph, Node, memory_of
from bntool.search import place


@dataclass(eq=False)
class Memory:
    """Who shares memory with whom, and writes to it when. `folded`: norms that are gone by now."""

    graph: Graph
    folded: set[Hashable]

    def nothing_overwrites(self, calls: Sequence[Node]) -> Blocked | None:
        """Without the norm its output is its input: what changes one in place would change the other."""
        for call in calls:
            chain = self._one_storage(call.inputs[0])
            if any(self._position(call) < w < self._last_read(call) for w in self._writes(call, chain[-1])):
                return Blocked(f"its input {place(chain[0])} is changed in place elsewhere")
            exclusive = all(len(v.users) == 1 for v in chain) and chain[-1].kind not in ("input", "parameter")
            if not exclusive and self._is_overwritten(call):
                return Blocked("its output is changed in place, which would now change its input")
        return None

    def _writes(self, call: Node, value: Node) -> list[int]:
        """When anything but `call` changes the memory of `value`, also through a view nobody knows."""
        value = memory_of(value, SHARING)
        found, todo = dict.fromkeys([(value, False)]), [(value, False)]
        while todo:
            value, hidden = todo.pop()
            for reader, port in value.users if value is not call else ():
                writes = _writes_to(reader, port)
                shares = writes or reader.kind in SHARING or reader.owner in self.folded
                here = (reader, hidden or not shares)
                if (shares or reader.kind == "opaque") and here not in found:
                    found[here] = None
                    todo.append(here)
        return [self._position(n) for n, hidden in found if n.overwrites and (n.watched or not hidden)]

    def _one_storage(self, value: Node) -> list[Node]:
        """The value and those upwards whose memory it may share."""
        chain = [value]
        while chain[-1].kind in SHARING or chain[-1].owner in self.folded:
            if not chain[-1].inputs:
                break
            chain.append(chain[-1].inputs[0])
        return chain

    def _is_overwritten(self, value: Node) -> bool:
        overwritten = any(_writes_to(r, port) for r, port in value.users)
        return overwritten or any(self._is_overwritten(r) for r in self._sharing(value))

    def _last_read(self, value: Node) -> int:
        """When the value, or what may be its memory, is read for the last time."""
        own = max((self._position(r) for r, _ in value.users), default=-1)
        return max([own, *map(self._last_read, self._sharing(value))])

    def _sharing(self, value: Node) -> list[Node]:
        """The readers whose value may be the memory of `value`."""
        return [r for r, _ in value.users if r.kind in SHARING or r.owner in self.folded]

    def _position(self, node: Node) -> int:
        return self._order[id(node)]

    @cached_property
    def _order(self) -> dict[int, int]:
        return {id(node): place for place, node in enumerate(self.graph.nodes)}


def _writes_to(reader: Node, port: int) -> bool:
    """Whether a reader changes the value that it is given at this port."""
    return reader.overwrites and (port == 0 or reader.kind == "opaque")
