"""Linear ops: where their channels are, and what absorbing a map does to weight and bias.

One formula serves all of them. For every weight element `out_of` and `in_of` name the output and the input
channel it connects (broadcastable integer arrays); then with `pre` before and `post` behind the op

    W' = W * post.scale[out_of] * pre.scale[in_of]
    b' = post.scale * (b + sum of W * pre.shift[in_of] per output channel) + post.shift
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bntool.algebra.affine import Array, ChannelAffine

Attrs = Mapping[str, Any]
Sizes = tuple[int, ...]
#: weight's shape, attributes -> (out_of, in_of)
Channels = Callable[[Sizes, Attrs], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Linear:
    """A row of the table: which axis of the op's value holds channels, and how its weight is laid out."""

    axis: Callable[[Attrs], int]
    channels: Channels


def _conv(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """(out, in / groups, *kernel)"""
    outs, per_group, taps = shape[0], shape[1], (1,) * (len(shape) - 2)
    out_of = np.arange(outs).reshape(-1, 1, *taps)
    group = out_of // (outs // attrs["groups"])
    return out_of, group * per_group + np.arange(per_group).reshape(1, -1, *taps)


def _conv_transpose(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """(in, out / groups, *kernel)"""
    ins, per_group, taps = shape[0], shape[1], (1,) * (len(shape) - 2)
    in_of = np.arange(ins).reshape(-1, 1, *taps)
    group = in_of // (ins // attrs["groups"])
    return group * per_group + np.arange(per_group).reshape(1, -1, *taps), in_of


def _rows(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """(..., out, in)"""
    return np.arange(shape[-2])[:, None], np.arange(shape[-1])[None, :]


def _columns(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    """(..., in, out)"""
    ins, outs = _rows(shape, attrs)
    return outs, ins


def _linear(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    return (_columns if attrs.get("transposed") else _rows)(shape, attrs)


def _matmul(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    return (_rows if attrs["side"] == "left" else _columns)(shape, attrs)


def _embedding(shape: Sizes, attrs: Attrs) -> tuple[np.ndarray, None]:
    return np.arange(shape[-1])[None, :], None


def _before_taps(attrs: Attrs) -> int:
    return -(int(attrs["rank"]) + 1)


def _last(attrs: Attrs) -> int:
    return -1


LINEAR: dict[str, Linear] = {
    "conv": Linear(_before_taps, _conv),
    "conv_transpose": Linear(_before_taps, _conv_transpose),
    "linear": Linear(_last, _linear),
    "matmul_const": Linear(lambda attrs: -2 if attrs["side"] == "left" else -1, _matmul),
    "embedding": Linear(_last, _embedding),
}


def out_channels(kind: str, shape: Sizes, attrs: Attrs) -> int:
    return int(LINEAR[kind].channels(shape, attrs)[0].max(initial=-1)) + 1


def in_channels(kind: str, shape: Sizes, attrs: Attrs) -> int:
    in_of = LINEAR[kind].channels(shape, attrs)[1]
    return 0 if in_of is None else int(in_of.max(initial=-1)) + 1


def factor(
    kind: str, shape: Sizes, attrs: Attrs, pre: ChannelAffine | None, post: ChannelAffine | None
) -> Array:
    """What the weight is multiplied with, broadcastable to its shape. `pre`, `post`: shape (channels,)."""
    out_of, in_of = LINEAR[kind].channels(shape, attrs)
    result: Array = np.ones((1,) * len(shape))
    if post is not None and post.scales:
        result = post.scale[out_of]
    if pre is not None and in_of is not None and pre.scales:
        result = result * pre.scale[in_of]
    return result


def carried(kind: str, weight: Array, attrs: Attrs, shift: Array) -> Array:
    """What a shift of the input (shape (in,)) adds to every output channel: shape (out,)."""
    out_of, in_of = LINEAR[kind].channels(weight.shape, attrs)
    assert in_of is not None
    product = weight * shift[in_of]
    rows = np.broadcast_to(out_of, weight.shape)
    return np.bincount(rows.ravel(), product.ravel(), int(out_of.max()) + 1)


def new_bias(bias: Array | None, carry: Array | None, post: ChannelAffine | None, outs: int) -> Array | None:
    """`post.scale * (bias + carry) + post.shift`, shape (out,); None when it comes out all zero."""
    total = np.zeros(outs) if bias is None else bias.astype(np.float64)
    if carry is not None:
        total = total + carry
    if post is not None:
        total = post(total)
    return total if total.any() else None


def absorb(
    kind: str,
    weight: Array,
    bias: Array | None,
    attrs: Attrs,
    pre: ChannelAffine | None = None,
    post: ChannelAffine | None = None,
) -> tuple[Array, Array | None]:
    """The weight and bias of `post . op . pre`, in float64: the whole rule at once."""
    outs = out_channels(kind, weight.shape, attrs)
    carry = carried(kind, weight, attrs, pre.shift) if pre is not None and pre.shifts else None
    return weight * factor(kind, weight.shape, attrs, pre, post), new_bias(bias, carry, post, outs)
