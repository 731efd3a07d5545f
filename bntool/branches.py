"""Parallel and chained linear ops -> one: which parts of a graph are a single convolution in disguise.

A value is a *form* of an earlier one when only linear ops that nobody else reads lie between: `value =
kernel(base)`. Sums of forms of one base add up, forms of forms compose. What costs fewer multiplications as
one kernel, and is exact, becomes a `Merge`. Pure: changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.kernels import Kernel, identity, plus, scaled, then
from bntool.branch_ops import OWN, Linear, constant_operand, is_sum, operand, parameter_of
from bntool.combinations import factor_of
from bntool.graphs.base import Graph, Node, never_written, storage

#: ops with a weight; a merge has to save one of them, or add one up with something else
WEIGHTED = ("conv", "linear")
#: the largest number of each type
LARGEST = {"float64": 1.79e308, "float32": 3.4e38, "bfloat16": 3.38e38, "float16": 65504.0}


@dataclass(frozen=True, eq=False)
class Form:
    """`value = kernel(base)`; `inside` are the nodes between, the value's own included."""

    base: Node
    kernel: Kernel
    inside: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Merge:
    """The value of `at` can be computed as `kernel(base)`, and the nodes `inside` are no longer needed.

    `last`: the kernel acts on the last dimension (a linear layer) and not on dimension 1 (a convolution).
    Units: `macs_saved` counts multiplications with the sizes the graph knows.
    """

    at: Node
    base: Node
    kernel: Kernel
    inside: tuple[Node, ...]
    last: bool
    macs_saved: int

    @property
    def weighted(self) -> list[Node]:
        return [n for n in self.inside if n.kind in WEIGHTED]


def find_merges(graph: Graph, keep: Callable[[Node], bool] = lambda norm: False) -> list[Merge]:
    """Disjoint merges, found from the outputs backwards, with none of the norms to `keep`."""
    merges: list[Merge] = []
    taken: set[int] = set()
    finders = [_Finder(graph, keep, last=last) for last in (False, True)]
    for node in reversed(graph.nodes):
        best = None if id(node) in taken else _best(finders, node)
        if best is not None and not any(id(n) in taken for n in best.inside):
            merges.append(best)
            taken.update(id(n) for n in best.inside)
    return merges


def _best(finders: list[_Finder], node: Node) -> Merge | None:
    found = [merge for finder in finders for merge in finder.merges(node)]
    return max(found, key=lambda m: m.macs_saved, default=None)


class _Finder:
    """Forms of values, on channels in dimension 1 or, with `last`, in the last one."""

    def __init__(self, graph: Graph, keep: Callable[[Node], bool], *, last: bool) -> None:
        self.graph, self.ops = graph, Linear(graph, keep, last)
        self.bases: dict[int, frozenset[int]] = {}
        self.calls = Counter(node.owner for node in graph.nodes if node.owner is not None)
        self.place = {id(node): place for place, node in enumerate(graph.nodes)}

    def merges(self, node: Node) -> Iterator[Merge]:
        unseen = not node.users  # as what only an in-place op reads of which nobody reads the value
        if unseen or node.watched or node.pinned or not self._promising(node):
            return
        for form in self.forms(node):
            saved = self._cost(form.inside) - form.kernel.macs * self._positions(node)
            worth_it = saved > 0 and self._merges_something(form) and self._holds_no_more(form)
            if worth_it and self._needs_no_copies(form) and self._writable(form, node):
                yield Merge(node, form.base, form.kernel, form.inside, self.ops.last, saved)

    def _promising(self, node: Node) -> bool:
        """Whether any form of the node could be a merge; asked first because it touches no weights."""
        region = list(self._region(node))
        weighted = sum(n.kind in WEIGHTED for n in region)
        return weighted > 1 or (weighted == 1 and any(map(is_sum, region)))

    def _region(self, node: Node) -> Iterator[Node]:
        """All linear ops that end in the node and that nobody else reads."""
        if (is_sum(node) or self._is_linear(node)) and self.ops.size(node) is not None:
            yield node
            for operand in filter(_swallowable, node.inputs):
                yield from self._region(operand)

    def _writable(self, form: Form, at: Node) -> bool:
        """Whether the base is a value, unchanged when the new op reads it, and the type can hold the op.

        (The new op reads it where the last of the old ones stood: an in-place op may come before that.)
        """
        dtype, base = self.graph.dtype(at), form.base
        users = [user for value in storage(base) for user in value.users]
        writers = [self.place[id(reader)] for reader, port in users if reader.overwrites and port == 0]
        if any(self.place[id(base)] < writer < self.place[id(at)] for writer in writers):
            return False
        known = base.kind != "parameter" and not base.changed_by and self.graph.dtype(base) == dtype
        arrays = (form.kernel.weight, form.kernel.bias)
        largest = max(float(np.abs(values).max(initial=0)) for values in arrays)
        return known and largest <= LARGEST.get(dtype or "", LARGEST["float32"])

    def _merges_something(self, form: Form) -> bool:
        """More than a layer and its norm, which folding does in place."""
        weighted = sum(n.kind in WEIGHTED for n in form.inside)
        sums = sum(map(is_sum, form.inside))
        return weighted > 1 or (weighted == 1 and sums > 0)

    def _holds_no_more(self, form: Form) -> bool:
        """Whether the weights are no larger than before: taps of a pool take none, those of its layer do."""
        weights = [n.params["weight"] for n in form.inside if n.kind in WEIGHTED]
        return form.kernel.weight.size <= sum({p.stored: prod(p.shape) for p in weights}.values())

    def _needs_no_copies(self, form: Form) -> bool:
        """Whether every layer with a weight goes with all of its calls."""
        calls = Counter(node.owner for node in form.inside if node.owner is not None)
        return all(count == self.calls[owner] for owner, count in calls.items())

    def forms(self, node: Node) -> list[Form]:
        """Every form of the value, the trivial one first."""
        channels = self.ops.size(node)
        if channels is None:
            return []
        trivial = Form(node, identity(channels, self.ops.rank(node)))
        return [trivial, *(self._sums(node) if is_sum(node) else self._chains(node))]

    def _chains(self, node: Node) -> Iterator[Form]:
        if not self._is_linear(node):
            return
        own, x = self.ops.own(node), operand(node)
        if own is None or self.ops.rank(x) != self.ops.rank(node):
            return
        for form in self._inner(x):
            kernel = scaled(form.kernel, own) if isinstance(own, ChannelAffine) else _after(form, own)
            if isinstance(kernel, Kernel):
                yield Form(form.base, kernel, (*form.inside, node))

    def _sums(self, node: Node) -> Iterator[Form]:
        if not frozenset.intersection(*map(self._bases, node.inputs)):
            return
        sums, *others = [self._summands(node, port) for port in range(len(node.inputs))]
        for forms in others:
            pairs = [(a, b, plus(a.kernel, b.kernel)) for a in sums for b in forms if a.base is b.base]
            sums = [Form(a.base, k, a.inside + b.inside) for a, b, k in pairs if isinstance(k, Kernel)]
        for form in sums:
            kernel = scaled(form.kernel, self._line(node, 1.0, node.attrs.get("shift", 0.0)))
            yield Form(form.base, kernel, (*form.inside, node))

    def _summands(self, node: Node, port: int) -> list[Form]:
        """Forms of what the sum adds up at `port`, with the factor that it has there."""
        factor = self._line(node, factor_of(node, port), 0.0)
        return [replace(f, kernel=scaled(f.kernel, factor)) for f in self._inner(node.inputs[port])]

    def _line(self, node: Node, scale: float, shift: float) -> ChannelAffine:
        channels = self.ops.size(node) or 0
        return ChannelAffine(np.full(channels, scale), np.full(channels, shift))

    def _inner(self, value: Node) -> list[Form]:
        """Forms of an operand; only the trivial one if others read it too."""
        forms = self.forms(value)
        return forms if _swallowable(value) else forms[:1]

    def _bases(self, value: Node) -> frozenset[int]:
        """What the operand could be a form of, found without touching weights."""
        if id(value) not in self.bases:
            found = {id(value)}
            if _swallowable(value) and (is_sum(value) or self._is_linear(value)):
                found |= {base for operand in value.inputs for base in self._bases(operand)}
            self.bases[id(value)] = frozenset(found)
        return self.bases[id(value)]

    def _is_linear(self, node: Node) -> bool:
        """Whether the node may be a linear op of fixed parameters."""
        constant = constant_operand(node)
        parameter = None if constant is None else parameter_of(constant)
        params = [*node.params.values(), *(() if parameter is None else parameter.params.values())]
        known = all(p.writable and never_written(self.graph, p) for p in params)  # nor computed from others
        return node.kind in OWN and bool(node.inputs) and known

    def _elements(self, node: Node) -> int:
        return prod(self.graph.shape(node) or ())

    def _positions(self, node: Node) -> int:
        return self._elements(node) // (self.ops.size(node) or 1)

    def _cost(self, nodes: tuple[Node, ...]) -> int:
        return sum(self._cost_of(node) for node in nodes)

    def _cost_of(self, node: Node) -> int:
        if node.kind == "identity":
            return 0
        if node.kind == "avg_pool":
            return self._elements(node) * int(prod(node.attrs["kernel_size"]))
        own = self.ops.own(node) if node.kind in WEIGHTED else None
        return own.macs * self._positions(node) if isinstance(own, Kernel) else self._elements(node)


def _after(form: Form, own: Kernel) -> Kernel | Blocked:
    """`own` behind the form; behind the trivial form it is itself."""
    return own if not form.inside else then(form.kernel, own)


def _swallowable(value: Node) -> bool:
    """Whether nobody would miss the value: one reader, no hook, no in-place change."""
    return len(value.users) == 1 and not (value.watched or value.changed_by or value.pinned)
