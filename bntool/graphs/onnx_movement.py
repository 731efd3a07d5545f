"""ONNX operators that move values, put them side by side, pad or stretch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.graphs.base import Node
from bntool.graphs.onnx_layers import place
from bntool.graphs.onnx_numpy import LAYOUT, Args
from bntool.graphs.onnx_op import Move, Op

NO_RANK = "the rank of its input is not known"
NO_RANKS = "the ranks of its inputs are not known"


def layout(op: Op) -> Node | str:
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


def sequence(op: Op) -> Node | str:
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
        places = (
            np.cumsum(cuts)[:-1].tolist() if cuts.ndim else list(range(int(cuts), x.shape[axis], int(cuts)))
        )
        return list(np.split(x, places, axis))

    return cut


def piece(op: Op) -> Node | str:
    sequence, position = op.nodes.get(op.name(0)), op.const(1)
    if sequence is None or position is None or "cut" not in sequence.attrs:
        return "its sequence or its place in it is computed"
    cut, place = sequence.attrs["cut"], int(position.fetch())
    node = op.node("layout", sequence)
    node.origin.move = lambda x: np.asarray(cut(x)[place])
    return node


def gather(op: Op) -> Node | str:
    weight = op.const(0)
    if weight is None or op.const(1) is not None:
        return layout(op)
    if len(weight.shape) != 2 or int(op.attrs.get("axis", 0)) != 0:
        return "it looks up in a constant along another dimension"
    return place(op, op.with_params(op.node("embedding", op.value(1)), weight=0), 0)


def concat(op: Op) -> Node | str:
    rank = op.rank()
    rank = len(op.out_shape() or ()) or rank
    axis = int(op.attrs.get("axis", 1))
    if not rank and axis >= 0:
        return NO_RANK
    inputs = [op.value(port) for port in range(len(op.proto.input))]
    return op.node("concat", *inputs, dim=axis - (rank or 0) if axis >= 0 else axis)


def resize(op: Op) -> Node | str:
    if op.attrs.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return "it crops"
    dims = _scaled(op)
    return "its sizes are not known" if dims is None else op.node("upsample", op.value(0), dims=dims)


def _scaled(op: Op) -> list[int] | None:
    """The dimensions that a Resize interpolates (negative); along the others it copies."""
    have, want = op.shape(0), op.out_shape()
    scales = op.list("scales", 2 if op.proto.op_type == "Resize" and op.opset > 10 else 1)
    if scales:
        rank = op.rank() if "axes" in op.attrs else len(scales)
        axes = op.attrs.get("axes", range(len(scales)))
        chosen = [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]
        return None if rank is None else [axis % rank - rank for axis in chosen]
    if have is None or want is None:
        return None
    exact = op.attrs.get("keep_aspect_ratio_policy", b"stretch") == b"stretch" and op.given(3)
    pairs = enumerate(zip(have, want, strict=True))
    return [d - len(have) for d, (a, b) in pairs if a != b or not (exact or d < 2)]


def pad(op: Op) -> Node | str:
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
    padded = range(rank) if axes is None else axes
    for axis, before, after in zip(padded, pads[:half], pads[half:], strict=True):
        widths[axis] = (int(before), int(after))
    mode = op.attrs.get("mode", b"constant").decode()
    return op.node("pad", op.value(0), widths=tuple(widths), mode=mode, value=float(value))


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
