"""What a plan makes of each parameter, as small float64 arrays: `new = old * scale + shift`, or a new value.

Free of torch: whoever holds the parameters (a module, an ONNX file) multiplies them, piece by piece.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bntool.algebra.absorbing import AFFINE, NORMS
from bntool.algebra.affine import Array, Blocked, ChannelAffine
from bntool.algebra.linear import LINEAR, carried, factor, new_bias, out_channels
from bntool.changes import Change
from bntool.graphs.base import Node, Param

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Rewrite:
    """What the parameter called `name` in the neutral vocabulary becomes.

    `param` is None for a bias that the node did not have. Shapes: `scale` and `shift` broadcast against the
    parameter; `value`, where given, is all of it.
    """

    node: Node
    name: str
    param: Param | None
    scale: Array | None = None
    shift: Array | None = None
    value: Array | None = None


class OutOfRange(Exception):
    """What a rewrite makes of a parameter does not fit its dtype."""

    def __init__(self, rewrite: Rewrite, reason: str) -> None:
        super().__init__(reason)
        self.rewrite, self.reason = rewrite, reason

    @property
    def owner(self) -> Hashable:
        return self.rewrite.node.owner

    def weight_of(self, form: ChannelAffine) -> float:
        """How much a map that was absorbed there has to do with it."""
        by_shift = self.rewrite.name == "bias"
        return float(np.abs(form.shift if by_shift else form.scale).max(initial=0.0))


def fitting(rewrite: Rewrite, made: T | Blocked) -> T:
    """What a rewrite has made. Raises: OutOfRange."""
    if isinstance(made, Blocked):
        raise OutOfRange(rewrite, made.reason)
    return made


def rewrites(changes: Iterable[Change]) -> list[Rewrite]:
    """Every parameter that changes, each once."""
    return [rewrite for change in changes for rewrite in rewrites_of(change)]


def adds_bias(change: Change) -> bool:
    """Whether a layer gets a bias that it did not have: one that comes out all zero is left out."""
    if change.node.kind not in LINEAR or change.node.kind == "embedding" or "bias" in change.node.params:
        return False
    return bool(_bias(change, change.node.params["weight"]))


def rewrites_of(change: Change) -> list[Rewrite]:
    kind = change.node.kind
    if kind == "embedding" or kind == "parameter":
        return _elementwise(change, "weight" if kind == "embedding" else "value")
    if kind in LINEAR:
        return _linear(change)
    return _norm(change) if kind in NORMS else _affine(change) if kind in AFFINE else []


def _elementwise(change: Change, name: str) -> list[Rewrite]:
    if change.post is None:
        return []
    return [Rewrite(change.node, name, change.node.params[name], change.post.scale, change.post.shift)]


def _linear(change: Change) -> list[Rewrite]:
    node, weight = change.node, change.node.params["weight"]
    scale = factor(node.kind, weight.shape, node.attrs, change.pre, change.post)
    result = [Rewrite(node, "weight", weight, scale)] if np.count_nonzero(scale != 1) else []
    return result + _bias(change, weight)


def _bias(change: Change, weight: Param) -> list[Rewrite]:
    node, bias = change.node, change.node.params.get("bias")
    shift = change.pre.shift if change.pre is not None and change.pre.shifts else None
    carry = None if shift is None else carried(node.kind, weight.fetch(), node.attrs, shift)
    if bias is None and carry is None and (change.post is None or not change.post.shifts):
        return []
    outs = out_channels(node.kind, weight.shape, node.attrs)
    value = new_bias(None if bias is None else bias.fetch(), carry, change.post, outs)
    if value is None and bias is None:
        return []
    return [Rewrite(node, "bias", bias, value=np.zeros(outs) if value is None else value)]


def _norm(change: Change) -> list[Rewrite]:
    params = change.node.params
    mean, var, weight, bias = (params[n].fetch() for n in ("mean", "var", "weight", "bias"))
    eps = change.node.attrs["eps"]
    scale = weight / np.sqrt(var + eps)
    shift = bias - mean * scale
    if change.pre is not None:
        scale, shift = scale * change.pre.scale, shift + scale * change.pre.shift
    if change.post is not None:
        scale, shift = scale * change.post.scale, change.post(shift)
    new_weight = scale * np.sqrt(var + eps)
    return [
        Rewrite(change.node, "weight", params["weight"], value=new_weight),
        Rewrite(change.node, "bias", params["bias"], value=shift + scale * mean),
    ]


def _affine(change: Change) -> list[Rewrite]:
    node, post = change.node, change.post
    if post is None:
        return []
    weight = Rewrite(node, "weight", node.params["weight"], post.scale)
    return [weight, Rewrite(node, "bias", node.params["bias"], post.scale, post.shift)]
