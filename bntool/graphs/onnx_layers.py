"""ONNX operators with weights: convolutions, products, norms; what of their inputs are parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bntool.algebra.affine import Array
from bntool.graphs.base import Node
from bntool.graphs.onnx_op import Op, Slot
from bntool.graphs.windows import window

#: the norm's default, which the format stores in float32
EPSILON = float(np.float32(1e-5))
#: `auto_pad` as a window says it; `pads` says how wide without it
AUTO_PADS = {b"VALID": "valid", b"SAME_UPPER": "same", b"SAME_LOWER": "same"}
NORM_INPUTS = ("input", "weight", "bias", "running mean", "running variance")


def place(op: Op, node: Node, *ports: int) -> Node:
    """Name a layer after its module, where that is known."""
    node.where = op.module(*ports)
    return node


def conv(op: Op) -> Node | str:
    weight = op.const(1)
    if weight is None or (op.given(2) and op.const(2) is None):
        return f"its weight {op.origin_of(1)}" if weight is None else f"its bias {op.origin_of(2)}"
    padded, rank = is_padded(op, weight.shape[2:]), len(weight.shape) - 2
    kind = "conv" if op.proto.op_type == "Conv" else "conv_transpose"
    bias = op.const(2)
    if bias is not None and len(bias.shape) != 1:
        return "its bias is not one value per channel"
    if kind == "conv_transpose":  # its border gets fewer taps, and with strides every place gets its own
        padded = padded or any(size != 1 for size in (*weight.shape[2:], *op.attrs.get("strides", ())))
    node = op.node(kind, op.value(0), groups=int(op.attrs.get("group", 1)), padded=padded, rank=rank)
    node.attrs |= geometry(op, weight.shape[2:])
    return place(op, _with_bias_slot(op, op.with_params(node, weight=1, bias=2)), 1)


def is_padded(op: Op, taps: Sequence[int]) -> bool:
    """Whether its window may reach beyond its input."""
    auto = AUTO_PADS.get(op.attrs.get("auto_pad", b""))
    return any(op.attrs.get("pads", ())) if auto is None else auto == "same" and any(n > 1 for n in taps)


def geometry(op: Op, taps: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The attributes of its window; none where its two sides are not padded alike."""
    pads = list(op.attrs.get("pads", [0] * (2 * len(taps))))
    before, behind = pads[: len(taps)], pads[len(taps) :]
    strides, dilations = list(op.attrs.get("strides", [1])), list(op.attrs.get("dilations", [1]))
    auto = AUTO_PADS.get(op.attrs.get("auto_pad", b""))
    strided = auto == "same" and is_padded(op, taps) and any(stride != 1 for stride in strides)
    if strided or (auto is None and before != behind):  # with strides its padding depends on sizes
        return {}
    return window(taps, strides, auto or before, dilations)


def _with_bias_slot(op: Op, node: Node) -> Node:
    node.origin.slots.setdefault("bias", op.slot(2))
    return node


def gemm(op: Op) -> Node | str:
    """`alpha * A' @ B' + beta * C`: the factors are taken into the parameters, so that the rules see none."""
    weight, bias = op.const(1), op.const(2)
    if weight is None or op.const(0) is not None:
        return f"its weight {op.origin_of(1)}" if weight is None else "its first input is constant"
    alpha, beta = float(op.attrs.get("alpha", 1.0)), float(op.attrs.get("beta", 1.0))
    transposed = not op.attrs.get("transB", 0)
    outs = weight.shape[1 if transposed else 0]
    if op.given(2) and (bias is None or bias.size not in (1, outs) or bias.shape[:-1] not in ((), (1,))):
        return "its C is not one constant per column"
    x = _transposed(op) if op.attrs.get("transA", 0) else op.value(0)
    node = op.node("linear", x, transposed=transposed)
    node.params["weight"] = op.param("weight", 1, lambda w: alpha * w)
    if bias is not None:
        node.params["bias"] = op.param("bias", 2, lambda b: beta * np.broadcast_to(b.reshape(-1), (outs,)))
    node.origin.slots = {"weight": op.slot(1, alpha), "bias": op.slot(2, beta)}
    return place(op, node, 1)


def _transposed(op: Op) -> Node:
    """The transposition that a Gemm does on its first input, as a node of its own."""
    x, shape = op.value(0), op.shape(0)
    node = op.node("layout", x)
    node.name, node.owner = node.name + "@A", None
    node.origin.move, node.origin.shape = np.transpose, None if shape is None else shape[::-1]
    op.extra.append(node)
    return node


def matmul(op: Op) -> Node | str:
    if op.const(0) is None and op.const(1) is None:
        a = op.value(0)
        return op.node("matmul", a, op.value(1), rows_sum_to_one=_rows_sum_to_one(a))
    port = 1 if op.const(1) is not None else 0
    shape = op.consts[op.name(port)].shape
    if len(shape) < 2 or (op.rank(1 - port) or 2) < 2:
        return "one of its operands is a vector"
    if port == 1 and len(shape) == 2:
        node = op.node("linear", op.value(0), transposed=True)
        node.origin.slots["bias"] = Slot(op.proto, -1)  # an Add behind it, to be made
    else:
        reason = "a MatMul with this operand constant has no place for a shift"
        node = op.node("matmul_const", op.value(1 - port), side="right" if port else "left", no_bias=reason)
    return place(op, op.with_params(node, weight=port), port)


def _rows_sum_to_one(a: Node) -> bool:
    while a.kind == "identity" or _keeps_rows(a):
        a = a.inputs[0]
    return a.kind == "softmax" and a.attrs["dim"] == -1


def _keeps_rows(a: Node) -> bool:
    """A reshape that leaves the last dimension as long as it is leaves every row what it is."""
    if a.kind != "layout" or a.origin.proto.op_type not in ("Reshape", "Squeeze", "Unsqueeze"):
        return False
    before, after = a.inputs[0].origin.shape, a.origin.shape
    return bool(before) and bool(after) and bool(before[-1] == after[-1])


def batch_norm(op: Op) -> Node | str:
    read = [op.value(port) for port in (0, *_computed(op, 1, 2, 3, 4))]
    training = trains(op.opset, op.attrs, op.proto.output)
    node = op.node("batch_norm", *read, eps=float(op.attrs.get("epsilon", EPSILON)), training=training)
    node.attrs["rank"] = op.rank()
    node = op.with_params(node, weight=1, bias=2, mean=3, var=4)
    node.pinned = _why_fixed(op, op.rank())
    if node.pinned:  # nor may it take the map of another norm
        node.params.clear()
    return place(op, node, 3, 4, 1, 2)


def _computed(op: Op, *ports: int) -> list[int]:
    """The inputs that are given and no constants: whatever makes them is read."""
    return [port for port in ports if op.name(port) in op.nodes and op.const(port) is None]


def _why_fixed(op: Op, rank: int | None) -> str:
    """Why a norm is no fixed map per channel, if it is none."""
    given = next((port for port in (1, 2, 3, 4) if op.const(port) is None), None)
    if given is not None:
        return f"its {NORM_INPUTS[given]} {op.origin_of(given)}"
    mean = op.const(3)
    if rank == 1 and mean is not None and mean.size != 1:
        return "it has several channels, and a single dimension is one"
    if not op.attrs.get("spatial", 1):
        return "it has one statistic per element (spatial = 0), not per channel"
    if any(op.used(port) for port in range(1, len(op.proto.output))):
        return "the graph reads the statistics it computes"
    return ""


def trains(opset: int, attrs: Mapping[str, Any], outputs: Sequence[str]) -> bool:
    """Opsets 1 and 6 have `is_test` (0 unless given); up to 13 it trains if it gives statistics out, read or
    not; then there is `training_mode`.
    """
    if opset < 7:
        return not attrs.get("is_test", 0)
    if opset < 14:
        return any(outputs[1:])
    return bool(attrs.get("training_mode", 0))


def channel_norm(op: Op) -> Node | str:
    """InstanceNormalization, GroupNormalization from opset 21 on: weight and bias are per channel."""
    shape, weight = op.shape(0), op.const(1)
    if shape is None or weight is None or weight.shape != shape[1:2]:
        return "its weight is not known to be per channel"
    return op.with_params(op.node("group_norm", op.value(0)), weight=1, bias=2)


def layer_norm(op: Op) -> Node | str:
    if op.used(1) or op.used(2):
        return "the graph reads its statistics"
    if _computed(op, 1, 2):
        return "its weight or bias is computed in the graph"
    axis, rank = int(op.attrs.get("axis", -1)), op.rank()
    normalized = -axis if axis < 0 else 0 if rank is None else rank - axis  # its weight may have fewer
    return op.with_params(op.node("layer_norm", op.value(0), normalized=normalized), weight=1, bias=2)


def bias_of_matmul(op: Op) -> Node | None:
    """MatMul followed by the Add of a constant row: one linear layer with a bias."""
    for port in (1, 0):
        bias, before = op.const(port), op.nodes.get(op.name(1 - port))
        if bias is None or before is None or before.kind != "linear" or "bias" in before.params:
            continue
        outs = before.params["weight"].shape[1 if before.attrs["transposed"] else 0]
        row = bias.size == outs and all(size == 1 for size in bias.shape[:-1])
        if row and before.origin.proto.op_type == "MatMul" and op.reads.get(op.name(1 - port)) == 1:
            node = op.node("linear", *before.inputs, transposed=before.attrs["transposed"])
            node.params = {**before.params, "bias": op.param("bias", port, _flat)}
            node.origin.slots = {"weight": before.origin.slots["weight"], "bias": op.slot(port)}
            node.where = before.where
            op.merged.append(before)
            return node
    return None


def _flat(values: Array) -> Array:
    return values.reshape(-1)
