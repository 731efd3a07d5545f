"""Table: ONNX operator -> neutral node. A rule answers with a node, or with the reason why it is opaque."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bntool.graphs.base import Node
from bntool.graphs.onnx_layers import (
    batch_norm,
    bias_of_matmul,
    channel_norm,
    conv,
    gemm,
    geometry,
    is_padded,
    layer_norm,
    matmul,
)
from bntool.graphs.onnx_movement import (
    NO_RANK,
    NO_RANKS,
    concat,
    gather,
    layout,
    pad,
    piece,
    resize,
    sequence,
)
from bntool.graphs.onnx_numpy import LAYOUT
from bntool.graphs.onnx_op import Op

Rule = Callable[[Op], Node | str]


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
    taps = tuple(op.attrs["kernel_shape"])
    beyond = is_padded(op, taps) or bool(op.attrs.get("ceil_mode", 0))
    counted = bool(op.attrs.get("count_include_pad", 0)) and beyond
    node = op.node("avg_pool", op.value(0), dims=_window(op), counts_padding=counted)
    node.attrs |= {} if op.attrs.get("ceil_mode", 0) else {"kernel_size": taps, **geometry(op, taps)}
    return node


def _global(kind: str) -> Rule:
    def rule(op: Op) -> Node | str:
        rank = op.rank()
        if rank is None:
            return NO_RANK
        attrs = {"keepdim": True} if kind == "mean" else {}
        return op.node(kind, op.value(0), dims=list(range(2 - rank, 0)), **attrs)

    return rule


def _reduced(op: Op) -> list[int] | str:
    """The dimensions over which it goes, negative; or why they are not known."""
    rank, axes = op.rank(), op.list("axes", 1)
    if rank is None or (axes is None and op.given(1)):
        return NO_RANK if rank is None else "its axes are computed"
    every = [] if op.attrs.get("noop_with_empty_axes", 0) else range(rank)
    return sorted((a if a < 0 else a - rank) for a in axes or every)


def _reduction(make: Callable[[Op, list[int]], Node | str]) -> Rule:
    """A rule that is given the dimensions; over none of them nothing is done."""

    def rule(op: Op) -> Node | str:
        dims = _reduced(op)
        if isinstance(dims, str):
            return dims
        return make(op, dims) if dims else op.node("identity", op.value(0))

    return rule


def _mean_over(op: Op, dims: list[int]) -> Node:
    return op.node("mean", op.value(0), dims=dims, keepdim=bool(op.attrs.get("keepdims", 1)))


def _max_over(op: Op, dims: list[int]) -> Node | str:
    """A maximum over one window; without `keepdims` it then loses these dimensions."""
    largest = op.node("max_pool", op.value(0), dims=dims)
    if op.attrs.get("keepdims", 1):
        return largest
    shape = op.shape(0)
    if shape is None:
        return "its sizes are not known"
    kept = tuple(1 if d - len(shape) in dims else size for d, size in enumerate(shape))
    largest.name, largest.owner, largest.origin.shape = f"{largest.name}@max", None, kept
    op.extra.append(largest)
    node = op.node("layout", largest)
    node.origin.move = lambda x: np.squeeze(x, tuple(dims))
    return node


def _clip(op: Op) -> Node | str:
    """From zero on without end it is a relu."""
    limits = [op.attrs.get(name, op.const(port)) for port, name in ((1, "min"), (2, "max"))]
    if op.given(2) or limits[1] is not None or limits[0] is None:
        return "its limits are others than zero"
    low = limits[0] if isinstance(limits[0], float) else limits[0].fetch().item()
    return op.node("relu", op.value(0)) if low == 0 else "its limits are others than zero"


def _mean(op: Op) -> Node | str:
    """Of any number of values, added up and divided by their number."""
    found = _sum(op)
    if isinstance(found, str):
        return found
    found.name, found.owner = f"{found.name}@sum", None
    op.extra.append(found)
    return op.node("scalar", found, a=1 / len(op.proto.input), b=0.0)


def _softmax(op: Op) -> Node | str:
    """Before opset 13 everything from `axis` (1 unless given) on is one row; since then `axis` (-1) alone."""
    rank = op.rank()
    if rank is None:
        return NO_RANK
    axis = int(op.attrs.get("axis", 1 if op.opset < 13 else -1)) % rank - rank
    if op.opset < 13 and axis != -1:
        return "its rows are several dimensions"
    return op.node("softmax", op.value(0), dim=axis)


def _sum(op: Op) -> Node | str:
    """Of any number of values: additions one after another."""
    ports = range(len(op.proto.input))
    if len({op.shape(port) for port in ports}) > 1 or any(op.const(port) is not None for port in ports):
        return "its inputs differ in shape, or are constants"
    if not _line_up(op, ports):
        return NO_RANKS
    total = op.value(0)
    for port in ports[1:-1]:
        total = op.node("add", total, op.value(port))
        total.name, total.owner = f"{total.name}@{port}", None
        op.extra.append(total)
    return op.node("add", total, op.value(ports[-1])) if len(ports) > 1 else op.node("identity", total)


def _line_up(op: Op, ports: Iterable[int]) -> bool:
    """Whether it is known which dimensions of the values meet: a map is written along those of the result."""
    ranks = {op.rank(port) for port in ports}
    return (len(ranks) == 1 and None not in ranks) or all(op.shape(port) is not None for port in ports)


def _arithmetic(kind: str) -> Rule:
    """Add, Sub, Mul, Div: with a number, with a parameter, or of two values."""

    def rule(op: Op) -> Node | str:
        if op.attrs.get("broadcast"):
            return "before opset 7 it lines its inputs up in another way"
        for port in (1, 0):
            const = op.const(port)
            if const is None:
                continue
            rank = op.rank(1 - port)
            if rank is None and const.shape:
                return NO_RANK
            if rank is not None and rank < len(const.shape):
                return "its constant has more dimensions than its other input"
            if const.size == 1:
                return _with_number(op, kind, port, float(const.fetch().reshape(-1)[0]))
        merged = bias_of_matmul(op) if kind == "add" else None
        varying = [port for port in (0, 1) if op.const(port) is None]
        if merged is None and not _line_up(op, varying):
            return NO_RANKS
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


def _names(rule: Rule, ops: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(ops, rule)


KINDS: dict[str, Rule] = {
    **_names(conv, ("Conv", "ConvTranspose")),
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    **_names(channel_norm, ("InstanceNormalization", "GroupNormalization")),
    "LayerNormalization": layer_norm,
    **_names(_passing("relu"), ("Relu", "LeakyRelu")),
    "PRelu": _prelu,
    "Identity": _passing("identity"),
    "Dropout": _dropout,
    **_names(_cast, ("Cast", "CastLike")),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max_pool"),
    "ReduceMean": _reduction(_mean_over),
    "ReduceMax": _reduction(_max_over),
    "Clip": _clip,
    "Softmax": _softmax,
    "Concat": concat,
    **_names(resize, ("Resize", "Upsample")),
    "Pad": pad,
    "Gather": gather,
    **_names(layout, sorted(set(LAYOUT) - {"Gather", "Split"})),
    "SplitToSequence": sequence,
    "SequenceAt": piece,
    "Neg": lambda op: op.node("scalar", op.value(0), a=-1.0, b=0.0),
    "Sum": _sum,
    "Mean": _mean,
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
}
