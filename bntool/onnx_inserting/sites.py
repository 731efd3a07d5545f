"""Where a norm can go in the neutral graph of an ONNX model: every layer, or the reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bntool.globs import selected
from bntool.graphs.base import Node
from bntool.graphs.onnx_ir import OnnxGraph, origin

CONVS = ("conv", "conv_transpose")
LAYERS = (*CONVS, "linear", "matmul_const", "matmul")
NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm")
#: what shape and order a value has, not what it is
STILL = ("identity", "layout", "scalar")


@dataclass(frozen=True)
class OnnxSite:
    """A layer behind which a norm goes unless `reason` says why not."""

    node: Node
    reason: str = ""

    @property
    def layer(self) -> str:
        return self.node.where

    @property
    def channels(self) -> int:
        shape = origin(self.node).shape
        assert shape is not None
        return shape[1]


def find(
    graph: OnnxGraph, *, layers: str | None, include: Sequence[str], exclude: Sequence[str]
) -> list[OnnxSite]:
    """All convolutions and linears in the order they run.

    `layers` is "conv", "linear" or "all"; by default convolutions, or linears where there is none.
    """
    candidates = [node for node in graph.nodes if node.kind in (*CONVS, "linear")]
    has_conv = any(node.kind in CONVS for node in candidates)
    asked = layers or ("all" if include else "conv" if has_conv else "linear")
    calls = Counter(node.params["weight"].name for node in candidates)
    found = []
    for node in candidates:
        kind = "conv" if node.kind in CONVS else "linear"
        if not selected(node.where, include, exclude):
            reason = "excluded or not included"
        elif asked not in (kind, "all"):
            reason = f"a {kind} layer; layers='all' gives it a norm"
        else:
            reason = _why_not(node, calls[node.params["weight"].name], named=bool(include))
        found.append(OnnxSite(node, reason))
    return found


def _why_not(node: Node, calls: int, *, named: bool) -> str:
    shape = origin(node).shape
    if origin(node).scope:
        return "it is inside a branch or a loop of the graph"
    if calls > 1:
        return f"shared: {calls} layers compute with its weight, each with statistics of its own"
    if shape is None:
        return "its sizes are not known"
    if node.kind == "linear" and len(shape) != 2:
        return "linear over (*, features), and the format's batch norm is over the second dimension"
    if (norm := norm_after(node)) is not None:
        return f"already normalised by {norm.where}"
    if not any(n.kind in LAYERS for n in _down(node, LAYERS)):
        return "the output layer: no layer comes after it"
    if node.kind in CONVS and int(np.prod(shape[2:], dtype=np.int64)) == 1 and not named:
        return "its map is one value per sample, as in a squeeze-and-excite gate"
    return ""


def norm_after(node: Node) -> Node | None:
    """The norm that reads this value before anything bends it."""
    for user, _ in node.users:
        if user.kind in NORMS:
            return user
        if user.kind in STILL and (found := norm_after(user)) is not None:
            return found
    return None


def _down(node: Node, stop: Sequence[str]) -> Iterator[Node]:
    """Every node a value reaches, not going on behind those of the kinds `stop`."""
    seen: set[int] = set()
    todo = [user for user, _ in node.users]
    while todo:
        here = todo.pop()
        if id(here) not in seen:
            seen.add(id(here))
            yield here
            if here.kind not in stop:
                todo.extend(user for user, _ in here.users)
