"""Table: ONNX operator -> neutral node. A rule answers with a node, or with the reason why it is opaque."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.algebra.affine import Array
from bntool.graphs.base import Node
from bntool.graphs.onnx_numpy import LAYOUT, Args
from bntool.graphs.onnx_op import Move, Op, Slot
from bntool.graphs.windows import window

Rule = Callable[[Op], Node | str]
#: the norm's default, which the format stores in float32
EPSILON = float(np.float32(1e-5))
COMPUTED = "its weight is computed"
NO_RANK = "the rank of its input is not known"


def _place(op: Op, node: Node, *ports: int) -> Node:
    """Name a layer after its module, where that is known."""
    node.where = op.module(*ports)
    return node


def _conv(op: Op) -> Node | str:
    weight = op.const(1)
    if weight is None or (op.given(2) and op.const(2) is None):
        return COMPUTED
    padded = any(op.attrs.get("pads", ())) or op.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    rank = len(weight.shape) - 2
    kind = "conv" if op.proto.op_type == "Conv" else "conv_transpose"
    node = op.node(kind, op.value(0), groups=int(op.attrs.get("group", 1)), padded=padded, rank=rank)
    node.attrs |= _geometry(op, weight.shape[2:])
    return _place(op, _with_bias_slot(op, op.with_params(node, weight=1, bias=2)), 1)


def _geometry(op: Op, taps: Sequence[int]) -> dict[str, tuple[int, ...]]:
    pads = list(op.attrs.get("pads", [0] * (2 * len(taps))))
    before, behind = pads[: len(taps)], pads[len(taps) :]
    if before != behind or op.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return {}
    return window(taps, list(op.attrs.get("strides", [1])), before, list(op.attrs.get("dilations", [1])))


def _with_bias_slot(op: Op, node: Node) -> Node:
    node.origin.slots.setdefault("bias", op.slot(2))
    return node


def _gemm(op: Op) -> Node | str:
    """`alpha * A' @ B' + beta * C`: the factors are taken into the parameters, so that the rules see none."""
    weight, bias = op.const(1), op.const(2)
    if weight is None or op.const(0) is not None:
        return COMPUTED
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
    return _place(op, node, 1)


def _transposed(op: Op) -> Node:
    """The transposition that a Gemm does on its first input, as a node of its own."""
    x, shape = op.value(0), op.shape(0)
    node = op.node("layout", x)
    node.name, node.owner = node.name + "@A", None
    node.origin.move, node.origin.shape = np.transpose, None if shape is None else shape[::-1]
    op.extra.append(node)
    return node


def _matmul(op: Op) -> Node | str:
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
    return _place(op, op.with_params(node, weight=port), port)


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


def _batch_norm(op: Op) -> Node | str:
    node = op.node(
        "batch_norm", op.value(0), eps=float(op.attrs.get("epsilon", EPSILON)), training=_trains(op)
    )
    node.attrs["rank"] = op.rank()
    node = op.with_params(node, weight=1, bias=2, mean=3, var=4)
    if len(node.params) < 4:
        node.watched = "its statistics or its weight and bias are computed in the graph"
    elif not op.attrs.get("spatial", 1):
        node.watched = "it has one statistic per element (spatial = 0), not per channel"
    elif any(op.used(port) for port in range(1, len(op.proto.output))):
        node.watched = "the graph reads the statistics it computes"
    return _place(op, node, 3, 4, 1, 2)


def _trains(op: Op) -> bool:
    """Opsets 1 and 6 have `is_test` (0 unless given); 7 to 13 only infer; then there is `training_mode`."""
    if op.opset < 7:
        return not op.attrs.get("is_test", 0)
    return bool(op.attrs.get("training_mode", 0))


def _channel_norm(op: Op) -> Node | str:
    """InstanceNormalization, GroupNormalization from opset 21 on: weight and bias are per channel."""
    shape, weight = op.shape(0), op.const(1)
    if shape is None or weight is None or weight.shape != shape[1:2]:
        return "its weight is not known to be per channel"
    return op.with_params(op.node("group_norm", op.value(0)), weight=1, bias=2)


def _layer_norm(op: Op) -> Node | str:
    if op.used(1) or op.used(2):
        return "the graph reads its statistics"
    weight = op.const(1)
    node = op.node("layer_norm", op.value(0), normalized=len(weight.shape) if weight is not None else 0)
    return op.with_params(node, weight=1, bias=2)


def _passing(kind: str, **attrs: Any) -> Rule:
    return lambda op: op.node(kind, op.value(0), **attrs)


def _dropout(op: Op) -> Node | str:
    if op.used(1):
        return "the graph reads its mask"
    mode = op.const(2)
    training = mode.fetch().any() if mode is not None else op.given(2)
    if training or (op.opset < 7 and not op.attrs.get("is_test", 0)):
        return "it is in train mode"
    return op.node("identity", op.value(0))


#: element types in order of what they hold: a cast to the right is exact
WIDER = {"float16": ("float32", "float64"), "bfloat16": ("float32", "float64"), "float32": ("float64",)}


def _cast(op: Op) -> Node | str:
    have, want = op.dtype(op.name(0)), op.dtype(op.proto.output[0])
    if have is None or want is None:
        return "its element types are not known"
    if have == want or want in WIDER.get(have, ()):
        return op.node("identity", op.value(0))
    return f"it casts {have} to {want}"


def _prelu(op: Op) -> Node | str:
    return op.node("relu", op.value(0)) if op.const(1) is not None else "its slope is computed"


def _window(op: Op) -> list[int]:
    return list(range(-len(op.attrs["kernel_shape"]), 0))


def _max_pool(op: Op) -> Node | str:
    return "the graph reads its indices" if op.used(1) else op.node("max_pool", op.value(0), dims=_window(op))


def _average_pool(op: Op) -> Node | str:
    padded = any(op.attrs.get("pads", ())) or op.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    counted = bool(op.attrs.get("count_include_pad", 0)) and (padded or bool(op.attrs.get("ceil_mode", 0)))
    node = op.node("avg_pool", op.value(0), dims=_window(op), counts_padding=counted)
    taps = tuple(op.attrs["kernel_shape"])
    node.attrs |= {} if op.attrs.get("ceil_mode", 0) else {"kernel_size": taps, **_geometry(op, taps)}
    return node


def _global(kind: str) -> Rule:
    def rule(op: Op) -> Node | str:
        rank = op.rank()
        if rank is None:
            return NO_RANK
        attrs = {"keepdim": True} if kind == "mean" else {}
        return op.node(kind, op.value(0), dims=list(range(2 - rank, 0)), **attrs)

    return rule


def _reduce_mean(op: Op) -> Node | str:
    rank, axes = op.rank(), op.list("axes", 1)
    if rank is None or (axes is None and op.given(1)):
        return NO_RANK if rank is None else "its axes are computed"
    if not axes and op.attrs.get("noop_with_empty_axes", 0):
        return op.node("identity", op.value(0))
    dims = sorted((a if a < 0 else a - rank) for a in axes or range(rank))
    return op.node("mean", op.value(0), dims=dims, keepdim=bool(op.attrs.get("keepdims", 1)))


def _softmax(op: Op) -> Node | str:
    """Before opset 13 everything from `axis` (1 unless given) on is one row; since then `axis` (-1) alone."""
    rank = op.rank()
    if rank is None:
        return NO_RANK
    axis = int(op.attrs.get("axis", 1 if op.opset < 13 else -1)) % rank - rank
    if op.opset < 13 and axis != -1:
        return "its rows are several dimensions"
    return op.node("softmax", op.value(0), dim=axis)


def _concat(op: Op) -> Node | str:
    rank = op.rank()
    rank = len(op.out_shape() or ()) or rank
    axis = int(op.attrs.get("axis", 1))
    if not rank and axis >= 0:
        return NO_RANK
    inputs = [op.value(port) for port in range(len(op.proto.input))]
    return op.node("concat", *inputs, dim=axis - (rank or 0) if axis >= 0 else axis)


def _resize(op: Op) -> Node | str:
    have, want = op.shape(0), op.out_shape()
    if have is None or want is None:
        return "its sizes are not known"
    if op.attrs.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return "it crops"
    changed = [d - len(have) for d, (a, b) in enumerate(zip(have, want, strict=True)) if a != b]
    if any(d + len(have) < 2 for d in changed):
        return "it resizes channels"
    return op.node("upsample", op.value(0), dims=list(range(2 - len(have), 0)))


def _pad(op: Op) -> Node | str:
    rank, pads = op.rank(), op.list("pads", 1)
    fill = op.const(2)
    value = op.attrs.get("value", 0.0) if fill is None else fill.fetch().item()
    axes = op.list("axes", 3)
    computed = (op.given(2) and fill is None) or (op.given(3) and axes is None)
    if rank is None or pads is None or computed:
        return NO_RANK if rank is None else "its widths are computed"
    if min(pads, default=0) < 0:
        return "it crops"
    half = len(pads) // 2
    widths = [(0, 0)] * rank
    for axis, before, after in zip(axes or range(rank), pads[:half], pads[half:], strict=True):
        widths[axis] = (int(before), int(after))
    mode = op.attrs.get("mode", b"constant").decode()
    return op.node("pad", op.value(0), widths=tuple(widths), mode=mode, value=float(value))


def _gather(op: Op) -> Node | str:
    weight = op.const(0)
    if weight is None or op.const(1) is not None:
        return _layout(op)
    if len(weight.shape) != 2 or int(op.attrs.get("axis", 0)) != 0:
        return "it looks up in a constant along another dimension"
    return _place(op, op.with_params(op.node("embedding"), weight=0), 0)


def _layout(op: Op) -> Node | str:
    """Data movement: the operator itself, run on whatever array is given."""
    computed = [port for port in range(1, len(op.proto.input)) if op.given(port) and op.const(port) is None]
    if computed and (op.proto.op_type not in BY_SHAPE or op.out_shape() is None):
        return "where it moves values is computed"
    node = op.node("layout", op.value(0))
    node.origin.move = _mover(op, 0)
    return node


#: layouts that the shape of their result describes completely
BY_SHAPE = ("Reshape", "Squeeze", "Unsqueeze", "Expand")


def _mover(op: Op, port: int) -> Move:
    compute = LAYOUT[op.proto.op_type]
    others = [op.const(p) for p in range(1, len(op.proto.input))]
    shapes = [op.types.of(name).shape for name in op.proto.output]

    def move(x: NDArray[Any]) -> NDArray[Any]:
        inputs = [x, *(None if c is None else c.fetch() for c in others)]
        return compute(Args(inputs, op.attrs, len(op.proto.output), shapes))[port]

    return move


def _arithmetic(kind: str) -> Rule:
    """Add, Sub, Mul, Div: with a number, with a parameter, or of two values."""

    def rule(op: Op) -> Node | str:
        for port in (1, 0):
            const = op.const(port)
            if const is None:
                continue
            if (op.rank(1 - port) or 0) < len(const.shape):
                return "its constant has more dimensions than its other input"
            if const.size == 1:
                return _with_number(op, kind, port, float(const.fetch().reshape(-1)[0]))
        merged = _bias_of_matmul(op) if kind == "add" else None
        return merged or op.node(kind, op.value(0), op.value(1))

    return rule


def _with_number(op: Op, kind: str, port: int, c: float) -> Node | str:
    if kind == "div" and (port == 0 or c == 0):
        return "it divides a number by a value" if port == 0 else "it divides by zero"
    a, b = {
        "add": (1.0, c),
        "sub": (1.0, -c) if port == 1 else (-1.0, c),
        "mul": (c, 0.0),
        "div": (1 / c if c else 0.0, 0.0),
    }[kind]
    return op.node("scalar", op.value(1 - port), a=a, b=b)


def _bias_of_matmul(op: Op) -> Node | None:
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


def _sequence(op: Op) -> Node | str:
    """SplitToSequence: to the planner the sequence is the value it holds; SequenceAt takes a piece of it."""
    if op.given(1) and op.const(1) is None:
        return "its lengths are computed"
    node = op.node("identity", op.value(0), cut=_cutter(op))
    node.origin.shape = op.shape(0)
    return node


def _cutter(op: Op) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
    axis, lengths = int(op.attrs.get("axis", 0)), op.const(1)
    cuts = None if lengths is None else lengths.fetch()

    def cut(x: NDArray[Any]) -> list[NDArray[Any]]:
        if cuts is None:
            pieces = np.split(x, x.shape[axis], axis)
            return pieces if op.attrs.get("keepdims", 1) else [piece.squeeze(axis) for piece in pieces]
        places = np.cumsum(cuts)[:-1] if cuts.ndim else np.arange(cuts, x.shape[axis], cuts)
        return list(np.split(x, places, axis))

    return cut


def _piece(op: Op) -> Node | str:
    sequence, position = op.nodes.get(op.name(0)), op.const(1)
    if sequence is None or position is None or "cut" not in sequence.attrs:
        return "its sequence or its place in it is computed"
    cut, place = sequence.attrs["cut"], int(position.fetch())
    node = op.node("layout", sequence)
    node.origin.move = lambda x: np.asarray(cut(x)[place])
    return node


def _names(rule: Rule, ops: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(ops, rule)


KINDS: dict[str, Rule] = {
    **_names(_conv, ("Conv", "ConvTranspose")),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **_names(_channel_norm, ("InstanceNormalization", "GroupNormalization")),
    "LayerNormalization": _layer_norm,
    **_names(_passing("relu"), ("Relu", "LeakyRelu")),
    "PRelu": _prelu,
    "Identity": _passing("identity"),
    "Dropout": _dropout,
    **_names(_cast, ("Cast", "CastLike")),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max_pool"),
    "ReduceMean": _reduce_mean,
    "Softmax": _softmax,
    "Concat": _concat,
    **_names(_resize, ("Resize", "Upsample")),
    "Pad": _pad,
    "Gather": _gather,
    **_names(_layout, sorted(set(LAYOUT) - {"Gather", "Split"})),
    "SplitToSequence": _sequence,
    "SequenceAt": _piece,
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
}


def split(op: Op) -> list[Node] | str:
    """Split has several outputs: one layout node for each."""
    if op.given(1) and op.const(1) is None:
        return "its lengths are computed"
    nodes = []
    for port in range(len(op.proto.output)):
        node = op.node("layout", op.value(0), port=port)
        node.origin.move = _mover(op, port)
        nodes.append(node)
    return nodes
