"""Linear ops of a graph as values: which kernel or channel map a single node is, if it is one.

Read on channels in dimension 1 (convolutions, pools, norms) or in the last one (linear layers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.kernels import Kernel, average, padded
from bntool.algebra.norms import norm_map
from bntool.combinations import ENDS
from bntool.graphs.base import SHARING, Graph, Node

#: what paddings are called, in torch and in ONNX -> what convolutions call it
MODES = {
    "constant": "zeros",
    "reflect": "reflect",
    **dict.fromkeys(("replicate", "edge"), "replicate"),
    **dict.fromkeys(("circular", "wrap"), "circular"),
}


@dataclass(frozen=True)
class Linear:
    """Reads nodes of `graph` as linear ops, but for norms to `keep`; with `last` channels come last."""

    graph: Graph
    keep: Callable[[Node], bool]
    last: bool

    def size(self, node: Node) -> int | None:
        """How many channels the value has."""
        shape = self.graph.shape(node)
        if shape is None or len(shape) < 2:
            return None
        return shape[-1] if self.last else shape[1]

    def rank(self, node: Node) -> int:
        """How many dimensions a window slides over."""
        return 0 if self.last else len(self.graph.shape(node) or ()) - 2

    def own(self, node: Node) -> Kernel | ChannelAffine | None:
        """The node as a kernel, or as a map behind its operand, or None if it is neither."""
        own = OWN[node.kind](self, node)
        if isinstance(own, ChannelAffine) and own.shape != (self.size(node),):
            return None
        if isinstance(own, Kernel) and own.rank != self.rank(node):
            return None
        return own

    def conv(self, node: Node) -> Kernel | None:
        a = node.attrs
        if self.last or not a.keys() >= {"stride", "padding", "dilation"}:
            return None
        weight = node.params["weight"].fetch()
        window = (a["groups"], a["stride"], a["padding"], a["dilation"], a.get("padding_mode", "zeros"))
        return Kernel(weight, _bias(node, len(weight)), *window)

    def linear(self, node: Node) -> Kernel | None:
        if not self.last:
            return None
        weight = node.params["weight"].fetch()
        weight = weight.T if node.attrs.get("transposed") else weight
        return Kernel(weight, _bias(node, len(weight)))

    def pool(self, node: Node) -> Kernel | None:
        a, channels = node.attrs, self.size(node)
        known = a.keys() >= {"kernel_size", "stride", "padding"} and not a.get("ceil_mode")
        hidden = known and any(a["padding"]) and not a["counts_padding"]
        if self.last or channels is None or not known or hidden or any(d > 1 for d in a.get("dilation", ())):
            return None
        return average(channels, a["kernel_size"], a["stride"], a["padding"])

    def pad(self, node: Node) -> Kernel | None:
        """As many values on both sides, around what a window slides over."""
        a, rank = node.attrs, self.rank(node)
        widths = (*((0, 0),) * (rank + 2 - len(a["widths"])), *a["widths"])
        even = all(before == behind >= 0 for before, behind in widths)
        if self.last or not even or any(before for before, _ in widths[:2]):
            return None
        if a["mode"] not in MODES or (a["mode"] == "constant" and a["value"] != 0):
            return None
        return padded(self.size(node) or 0, tuple(before for before, _ in widths[2:]), MODES[a["mode"]])

    def norm(self, node: Node) -> ChannelAffine | None:
        if (
            node.attrs.get("training")
            or self.keep(node)
            or (self.last and len(self.graph.shape(node) or ()) != 2)
        ):
            return None
        mean, var, weight, bias = (_array(node, name) for name in ("mean", "var", "weight", "bias"))
        m = norm_map(mean, var, weight, bias, node.attrs["eps"])
        return None if isinstance(m, Blocked) else m

    def scalar(self, node: Node) -> ChannelAffine | None:
        channels = self.size(node) or 0
        return ChannelAffine(
            np.full(channels, float(node.attrs["a"])), np.full(channels, float(node.attrs["b"]))
        )

    def scale(self, node: Node) -> ChannelAffine | None:
        """A product with a parameter that has one number a channel."""
        values = self._per_channel(node)
        return None if values is None else ChannelAffine(values, np.zeros_like(values))

    def shift(self, node: Node) -> ChannelAffine | None:
        """A sum with a parameter, or a difference, that has one number a channel."""
        values = self._per_channel(node)
        if values is None:
            return None
        ones = np.ones_like(values)
        if node.kind == "add":
            return ChannelAffine(ones, values)
        first = node.inputs[0] is constant_operand(node)
        return ChannelAffine(-ones, values) if first else ChannelAffine(ones, -values)

    def _per_channel(self, node: Node) -> Array | None:
        """The operand that is a parameter, if it has one number a channel."""
        channels, constant = self.size(node) or 0, constant_operand(node)
        value = None if constant is None else self._value(constant)
        if value is None:
            return None
        rank = len(self.graph.shape(node) or ())
        shape = (1,) * (rank - value.ndim) + value.shape
        axis = rank - 1 if self.last else 1
        if any(size != 1 for d, size in enumerate(shape) if d != axis):
            return None
        return np.broadcast_to(value.reshape(-1), (channels,)).copy()

    def _value(self, constant: Node) -> Array | None:
        """The numbers of a parameter, or of one that is moved about."""
        if constant.kind == "parameter":
            return constant.params["value"].fetch()
        value = self._value(constant.inputs[0])
        index = self.graph.index(constant) if constant.kind == "layout" else None
        if value is None or index is None:
            return value
        return None if isinstance(index, Blocked) else np.where(index < 0, 0.0, value.reshape(-1)[index])

    def nothing(self, node: Node) -> ChannelAffine:
        return ChannelAffine.identity(self.size(node) or 0)


OWN = {
    "conv": Linear.conv,
    "linear": Linear.linear,
    "avg_pool": Linear.pool,
    "pad": Linear.pad,
    "batch_norm": Linear.norm,
    "scalar": Linear.scalar,
    "mul": Linear.scale,
    "add": Linear.shift,
    "sub": Linear.shift,
    "identity": Linear.nothing,
}


def constant_operand(node: Node) -> Node | None:
    """The parameter that the node adds to a value, or multiplies it with; it may be moved about first."""
    found = [n for n in node.inputs if parameter_of(n) is not None]
    return found[0] if len(node.inputs) == 2 and len(found) == 1 else None


def parameter_of(value: Node) -> Node | None:
    """The parameter that a value holds the numbers of, if nothing but their places and shape is changed."""
    while value.kind in SHARING and len(value.inputs) == 1 and not value.changed_by:
        value = value.inputs[0]
    return value if value.kind == "parameter" and not value.changed_by else None


def operand(node: Node) -> Node:
    """The value that a linear op of one value works on."""
    constant = constant_operand(node)
    return next(n for n in node.inputs if n is not constant)


def is_sum(node: Node) -> bool:
    """Whether the node adds values up."""
    return node.kind in ENDS and constant_operand(node) is None


def _array(node: Node, name: str) -> Array | None:
    return node.params[name].fetch() if name in node.params else None


def _bias(node: Node, channels: int) -> Array:
    bias = _array(node, "bias")
    return np.zeros(channels) if bias is None else bias
