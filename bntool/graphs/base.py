"""What the planner sees of a model: nodes in order, in one neutral vocabulary, parameters fetched on demand.

Each kind of graph (torch.fx, torch.export, ONNX) translates its own operators into `Node`s once; every rule
is written against `kind` and so serves all of them. What a front end cannot name is `opaque`: nothing passes.

The vocabulary (inputs are tensor values only; attributes are plain Python values):

kind             inputs  attributes                                              params
conv             x       groups, padded (zero padding hides a shift), rank;      weight (out, in/g, *k), bias?
                         stride, padding, dilation where both sides have as much; padding_mode where
                         it may be other than "zeros"
conv_transpose   x       groups, rank                                            weight (in, out/g, *k), bias?
linear           x       transposed (weight is (in, out))                        weight (out, in), bias?
matmul_const     x       side: "right" (x @ w) or "left" (w @ x)                 weight
embedding        places                                                          weight (num, dim)
                         all five: no_bias, the reason why a bias cannot be given to it, if it cannot
batch_norm       x       eps, training, channels; counter_bytes of a count that  weight?, bias?, mean, var
                         goes with its statistics
instance_norm    x       as batch_norm (running statistics in use)               as batch_norm
layer_norm       x       normalized (trailing dimensions)                        weight?, bias?
group_norm       x                                                               weight?, bias?
parameter        -                                                               value (used as an operand)
scalar           x       a, b: the literal a * x + b
relu             x       -: relu, leaky relu, prelu: f(s * x) = s * f(x), s >= 0
max_pool         x       dims: pooled dimensions (negative)
avg_pool         x       dims, counts_padding (the padding's zeros enter the mean); kernel_size, stride,
                         padding where it is a sliding window with as many zeros on both sides
mean             x       dims (negative), keepdim
sum              x       dims (negative), keepdim
upsample         x       dims: interpolated dimensions (negative); weights sum to one
pad              x       widths: ((before, after), ...) per trailing dimension, mode, value
add, sub         a, b
combination      *xs     factors, shift: sum(factor * x) + shift: a sum of what was stacked, and what the
                         planner makes of sums that read one value several times
mul              a, b    elementwise product of two values (a gate, an attention mask)
div              a, b
matmul           a, b    rows_sum_to_one: known of `a` (softmax, dropout in eval, layout)
sdpa             q, k, v  rows_sum_to_one: False where a mask may hide a whole row
softmax          x       dim (negative)
concat           *xs     dim (negative)
layout           x       -: pure data movement; `Graph.index` says what goes where
identity         x       -: dropout in eval, contiguous, a cast that is exact, ...
input, constant  -       -: values nothing is known of; a map may not enter them
opaque           *       what: the operator's own name, for the reason
output           *       of: what leaves the model (or the traced island of that path) and must not change
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bntool.algebra.absorbing import NORMS
from bntool.algebra.affine import Array, Blocked
from bntool.algebra.kernels import Kernel

Index = NDArray[np.int64]
#: sizes of a value; None when unknown
Shape = tuple[int, ...] | None


@dataclass(eq=False, slots=True)
class Param:
    """One named tensor a node computes with. Equal `key`s are one tensor: tied or shared.

    (Not frozen, which would take three times as long to make, and a large model has thousands.)
    """

    name: str
    key: Hashable
    shape: tuple[int, ...]
    dtype: str
    fetch: Callable[[], Array]
    writable: bool = True
    """False for a value computed from others (a standardised weight) or read by code nobody can see."""
    part: Hashable = None
    """Which part of the memory behind `key` it is, where several may share that."""
    source: Hashable = None
    """The stored tensor, where several keys may read one."""
    own_class: str = ""
    """The tensor's class, where that decides what operators do with it: then its numbers are not read."""
    is_product: bool = False
    """Whether the layer gets the stored tensor times something: `fetch` gives that, `name` what is stored."""

    @property
    def stored(self) -> Hashable:
        return (self.key, self.part) if self.source is None else self.source


@dataclass(eq=False, slots=True)
class Node:
    """One value of the graph and the operator that makes it."""

    name: str
    kind: str
    inputs: tuple[Node, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    owner: Hashable = None
    """Nodes with equal owners compute with the same parameters: the calls of one shared layer."""
    where: str = ""
    """The place a person knows: a module path, an ONNX node name."""
    origin: Any = None
    """The front end's own node."""
    users: list[tuple[Node, int]] = field(default_factory=list)
    """Who reads this value, and as which of its inputs."""
    changed_by: str = ""
    """The in-place operator that changes this value under its later readers, if any."""
    overwrites: bool = False
    """Whether this operator changes its first input in place."""
    watched: str = ""
    """Why this value must stay as it is (a hook sees it), if it must."""
    pinned: str = ""
    """Why a norm must stay in the model (it has hooks of its own), if it must."""

    def __repr__(self) -> str:
        return f"{self.name}:{self.kind}({', '.join(i.name for i in self.inputs)})"


class Graph(Protocol):
    """A model as the planner sees it."""

    @property
    def nodes(self) -> Sequence[Node]:
        """All nodes, inputs before users; several disjoint parts (paths, islands) may follow one another."""

    def shape(self, node: Node) -> Shape:
        """The sizes of the node's value, or None when they are not known."""

    def unsized(self, node: Node) -> Blocked:
        """Why they are not."""

    def dtype(self, node: Node) -> str | None:
        """The element type's NumPy-style name ("float32", "bfloat16"), or None when it is not known."""

    def index(self, node: Node) -> Index | Blocked:
        """For a `layout` node: for every output element the flat index of the input element it copies.

        Shapes: the output's shape. -1 where the output element copies nothing (a zero).
        """

    def readers(self, key: Hashable) -> Sequence[Node]:
        """Every node that computes with the parameter `key`, including opaque ones."""


#: kinds whose value may be their input's memory
SHARING = ("layout", "identity")


#: kinds whose value is memory of its own
FRESH = frozenset(
    (
        *("conv", "conv_transpose", "linear", "matmul_const", "embedding", "layer_norm", "group_norm"),
        *("scalar", "relu", "max_pool", "avg_pool", "mean", "sum", "upsample", "add", "sub", "mul", "div"),
        *("matmul", "sdpa", "softmax", "concat"),
    )
)


def memory_of(node: Node, kinds: Container[str] = (*SHARING, *NORMS)) -> Node:
    """The value whose memory this one's is, or may be once norms are folded (without them: `SHARING`)."""
    while node.inputs and (node.overwrites or node.kind in kinds):
        node = node.inputs[0]
    return node


def storage(node: Node) -> list[Node]:
    """The values that may be one piece of memory with this one's, itself included."""
    while node.kind in SHARING and node.inputs:
        node = node.inputs[0]
    found, todo = list[Node](), [node]
    while todo:
        found.append(value := todo.pop())
        todo += [reader for reader, _ in value.users if reader.kind in SHARING]
    return found


def never_written(graph: Graph, param: Param) -> bool:
    """Whether the parameter is what it is in every run: nothing overwrites it, or may."""
    return not any(_writes(reader) for reader in graph.readers(param.key))


def _writes(reader: Node) -> bool:
    """Whether a node, or whatever reads the memory it gives on, may write to it."""
    if reader.overwrites or reader.kind == "opaque":
        return True
    shares = reader.kind in ("parameter", *SHARING)
    return shares and any(_writes(r) for r, _ in reader.users)


def connect(nodes: Sequence[Node], roots: Iterable[Node]) -> None:
    """Fill in `users` from `inputs`; what `roots` do not derive from reads nothing: nobody ever sees it."""
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            todo.extend(node.inputs)
    for node in nodes:
        node.users = []
    for node in nodes:
        for port, value in enumerate(node.inputs if id(node) in seen else ()):
            value.users.append((node, port))


class Mergeable(Protocol):
    """What is needed of a merge: `kernel(base)` computes the value of `at`."""

    @property
    def at(self) -> Node: ...
    @property
    def base(self) -> Node: ...
    @property
    def kernel(self) -> Kernel: ...
    @property
    def inside(self) -> tuple[Node, ...]: ...
