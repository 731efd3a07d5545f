"""ONNX operators in NumPy: enough to evaluate constants and to move an index array through data movement.

Only what exporters write around weights and shapes is here; anything else is no constant and no layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Tensor = NDArray[Any]


@dataclass(frozen=True)
class Args:
    """One call: `inputs` (None where left out), attributes, and how many outputs the node has.

    `out_shapes` are the shapes inference gave; a shape that the node computes itself may be taken from there.
    """

    inputs: Sequence[Tensor | None]
    attrs: dict[str, Any]
    outputs: int = 1
    out_shapes: Sequence[tuple[int, ...] | None] = (None,)

    @property
    def x(self) -> Tensor:
        first = self.inputs[0]
        assert first is not None
        return first

    def ints(self, attribute: str, port: int) -> list[int] | None:
        """A list that is an attribute in old opsets and an input in new ones."""
        if attribute in self.attrs:
            return [int(v) for v in self.attrs[attribute]]
        value = self.inputs[port] if port < len(self.inputs) else None
        return None if value is None else [int(v) for v in np.atleast_1d(value)]


Op = Callable[[Args], list[Tensor]]


def _reshaped(otherwise: Callable[[Args], Tensor]) -> Op:
    """The same elements in the same order: in the shape that inference gave, where it did."""

    def apply(args: Args) -> list[Tensor]:
        shape = args.out_shapes[0]
        return [otherwise(args) if shape is None else args.x.reshape(shape)]

    return apply


def _reshape(args: Args) -> Tensor:
    wanted = args.ints("shape", 1)
    if wanted is None:
        raise ValueError("the shape of the result is not known")
    if not args.attrs.get("allowzero"):
        wanted = [args.x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return args.x.reshape(wanted)


def _flatten(args: Args) -> Tensor:
    axis = int(args.attrs.get("axis", 1))
    axis += args.x.ndim if axis < 0 else 0
    return args.x.reshape(int(np.prod(args.x.shape[:axis], dtype=np.int64)), -1)


def _squeeze(args: Args) -> Tensor:
    axes = args.ints("axes", 1)
    return np.squeeze(args.x, None if axes is None else tuple(axes))


def _unsqueeze(args: Args) -> Tensor:
    return np.expand_dims(args.x, tuple(args.ints("axes", 1) or ()))


def _transpose(args: Args) -> list[Tensor]:
    return [np.transpose(args.x, args.attrs.get("perm"))]


def _slice(args: Args) -> list[Tensor]:
    starts, ends = args.ints("starts", 1), args.ints("ends", 2)
    if starts is None or ends is None:
        raise ValueError("its bounds are computed")
    axes = args.ints("axes", 3) or list(range(len(starts)))
    steps = args.ints("steps", 4) or [1] * len(starts)
    cut = [slice(None)] * args.x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        below = step < 0 and end < -args.x.shape[axis]
        cut[axis] = slice(start, None if below else end, step)
    return [args.x[tuple(cut)]]


def _split(args: Args) -> list[Tensor]:
    axis, size = int(args.attrs.get("axis", 0)), args.x.shape[int(args.attrs.get("axis", 0))]
    lengths = args.ints("split", 1)
    if lengths is None:
        each = -(-size // args.outputs)
        lengths = [min(each, size - k * each) for k in range(args.outputs)]
    return list(np.split(args.x, np.cumsum(lengths)[:-1], axis))


def _expand(args: Args) -> list[Tensor]:
    wanted = args.ints("shape", 1)
    shape = args.out_shapes[0] if wanted is None else np.broadcast_shapes(args.x.shape, tuple(wanted))
    if shape is None:
        raise ValueError("the shape of the result is not known")
    return [np.broadcast_to(args.x, shape)]


def _tile(args: Args) -> list[Tensor]:
    repeats = args.ints("repeats", 1)
    if repeats is None:
        raise ValueError("its repeats are computed")
    return [np.tile(args.x, repeats)]


def _gather(args: Args) -> list[Tensor]:
    where = args.inputs[1]
    if where is None:
        raise ValueError("its indices are computed")
    return [np.take(args.x, where.astype(np.int64), int(args.attrs.get("axis", 0)))]


def _depth_to_space(args: Args) -> list[Tensor]:
    n, c, h, w = args.x.shape
    b = int(args.attrs["blocksize"])
    if args.attrs.get("mode", b"DCR") == b"DCR":
        split = args.x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        split = args.x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [split.reshape(n, c // b**2, h * b, w * b)]


def _space_to_depth(args: Args) -> list[Tensor]:
    n, c, h, w = args.x.shape
    b = int(args.attrs["blocksize"])
    split = args.x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [split.reshape(n, c * b**2, h // b, w // b)]


def _concat(args: Args) -> list[Tensor]:
    return [np.concatenate([x for x in args.inputs if x is not None], int(args.attrs["axis"]))]


def _constant(args: Args) -> list[Tensor]:
    (name, value), *_ = args.attrs.items()
    if name == "value":
        return [numpy_helper.to_array(value)]
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    return [np.array(value, kinds[name])]


def _constant_of_shape(args: Args) -> list[Tensor]:
    value = args.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return [np.full([int(s) for s in args.x], fill.reshape(-1)[0], fill.dtype)]


def _cast(args: Args) -> list[Tensor]:
    return [args.x.astype(helper.tensor_dtype_to_np_dtype(int(args.attrs["to"])))]


def _shape(args: Args) -> list[Tensor]:
    sizes = args.x.shape[slice(args.attrs.get("start", 0), args.attrs.get("end"))]
    return [np.array(sizes, np.int64)]


def _range(args: Args) -> list[Tensor]:
    start, limit, delta = (x.item() for x in args.inputs if x is not None)
    return [np.asarray(np.arange(start, limit, delta), args.x.dtype)]


def _arithmetic(function: Callable[..., Tensor]) -> Op:
    def apply(args: Args) -> list[Tensor]:
        result = function(*args.inputs)
        return [np.asarray(result).astype(args.x.dtype)]

    return apply


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = np.issubdtype(a.dtype, np.integer)
    return np.asarray(np.trunc(a / b) if whole else np.divide(a, b))


def _mod(args: Args) -> list[Tensor]:
    """The divisor's sign, or with `fmod` the dividend's."""
    return _arithmetic(np.fmod if args.attrs.get("fmod") else np.mod)(args)


def _plain(function: Callable[..., Any]) -> Op:
    return lambda args: [np.asarray(function(*args.inputs))]


def _reduction(function: Callable[..., Tensor]) -> Op:
    """Over no axes it does nothing if it says so, else over all of them."""

    def apply(args: Args) -> list[Tensor]:
        axes, keep = args.ints("axes", 1), bool(args.attrs.get("keepdims", 1))
        if not axes and args.attrs.get("noop_with_empty_axes"):
            return [args.x]
        result = function(args.x, tuple(axes) if axes else None, keepdims=keep)
        return [np.asarray(result).astype(args.x.dtype)]

    return apply


def _length(x: Tensor, axes: tuple[int, ...] | None, *, keepdims: bool) -> Tensor:
    return np.asarray(np.sqrt(np.sum(np.square(x), axes, keepdims=keepdims)))


#: op -> its values moved to other places, some left out, some repeated; nothing computed
LAYOUT: dict[str, Op] = {
    "Reshape": _reshaped(_reshape),
    "Flatten": _reshaped(_flatten),
    "Squeeze": _reshaped(_squeeze),
    "Unsqueeze": _reshaped(_unsqueeze),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
EVALUATED: dict[str, Op] = {
    **LAYOUT,
    "Identity": lambda args: [args.x],
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Concat": _concat,
    "Cast": _cast,
    "Shape": _shape,
    "Range": _range,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Mod": _mod,
    "Neg": _arithmetic(np.negative),
    "Sqrt": _arithmetic(np.sqrt),
    "Reciprocal": _arithmetic(np.reciprocal),
    "ReduceL2": _reduction(_length),
    "ReduceMean": _reduction(np.mean),
    "ReduceSum": _reduction(np.sum),
    "Equal": _plain(np.equal),
    "Where": _plain(np.where),
}
