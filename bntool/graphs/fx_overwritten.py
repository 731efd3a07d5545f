"""In-place ops of a traced graph: which values are one memory, and who sees what is written to it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from bntool.algebra.absorbing import NORMS
from bntool.graphs.base import FRESH, SHARING, Node, memory_of
from bntool.graphs.fx_calls import changes_in_place, function_name
from bntool.graphs.fx_sizes import UNKNOWN, Sizes


@dataclass(frozen=True)
class Write:
    """`new` overwrites `old`; `others` are its memory too; from the node number `at` on, `new` is read."""

    old: Node
    new: Node
    others: list[Node]
    at: int


@dataclass
class Overwritten:
    """The in-place ops of one way."""

    sizes: Sizes
    family: dict[int, list[Node]] = field(default_factory=dict)
    """Values that are one memory, by the id of each."""
    writes: list[Write] = field(default_factory=list)

    def is_view(self, node: Node) -> None:
        self._join(node, node.inputs[0])

    def write(self, old: Node, new: Node, at: int) -> None:
        others = [n for n in self.family.get(id(old), []) if n is not old]
        self.writes.append(Write(old, new, others, at))
        self._join(new, old)

    def _join(self, node: Node, known: Node) -> None:
        self.family[id(node)] = self.family.setdefault(id(known), [known])
        self.family[id(node)].append(node)

    def mark(self, nodes: Sequence[Node], start: int) -> None:
        """What is read after it has changed under its name, and what others see of a write."""
        if not self.writes:
            return
        position = {id(n): i for i, n in enumerate(nodes)}
        readers: dict[int, list[Node]] = {}
        for reader in nodes[start:]:
            for value in reader.inputs:
                readers.setdefault(id(value), []).append(reader)
        for write in self.writes:
            values = self._with_hidden_views(write, readers, position)
            later = [v for v in values if any(position[id(r)] >= write.at for r in readers.get(id(v), []))]
            for value in later:
                if value is not write.old or write.new.kind == "opaque":
                    value.changed_by = write.new.where
            seen = any(v.watched for v in values) or any(v is not write.old for v in later)
            if (seen or not self._is_own(write.old)) and not write.new.watched:
                write.new.watched = f"{write.new.where} changes in place what others see too"

    def _with_hidden_views(
        self, write: Write, readers: dict[int, list[Node]], position: dict[int, int]
    ) -> list[Node]:
        """The values whose memory is written to; what nobody knows may be a view."""
        found = dict.fromkeys((write.old, *write.others))
        todo = list(found)
        while todo:
            here = [r for r in readers.get(id(todo.pop()), []) if r.kind == "opaque" and not r.overwrites]
            hidden = [r for r in here if position[id(r)] < write.at and not self._has_new_memory(r)]
            more = [v for r in hidden for v in self.family.get(id(r), [r]) if v not in found]
            found.update(dict.fromkeys(more))
            todo += more
        return list(found)

    def _is_own(self, value: Node) -> bool:
        """Whether the forward itself has made its memory: it is no input's, parameter's or constant's."""
        value = memory_of(value, SHARING)
        return value.kind in FRESH or value.kind in NORMS or self._has_new_memory(value)

    def _has_new_memory(self, node: Node) -> bool:
        """Whether a call gives a tensor of its own, no view of what it is given."""
        made = node.origin
        if made.op not in ("call_function", "call_method") or not function_name(made):
            return False
        given, kept = (_memories(map(self.sizes.value, v)) for v in (made.all_input_nodes, [made]))
        return None not in given | kept and given.isdisjoint(kept)


def _memories(values: Iterable[Any]) -> set[Hashable]:
    """What tensors are kept in; None for what is not known."""
    leaves = pytree.tree_leaves(list(values))
    found: set[Hashable] = {v.untyped_storage()._cdata for v in leaves if isinstance(v, torch.Tensor)}
    return found | {None} if any(v is UNKNOWN for v in leaves) else found


def is_written(tensor: fx.Node, sizes: Sizes) -> bool:
    """Whether the forward writes to a tensor that it reads, maybe through a view of it."""
    todo, seen = [tensor], {tensor}
    while todo:
        users = todo.pop().users
        if any(changes_in_place(u) for u in users):
            return True
        views = [u for u in users if u not in seen and sizes.is_constant(u)]
        seen.update(views)
        todo += views
    return False
