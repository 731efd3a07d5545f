"""Linear ops: where their channels are, and what absorbing a map does to weight and bias.

One formula serves all of them. For every weight element `out_of` and `in_of` name the output and the input
channel it connects (broadcastable integer arrays); then with `pre` before and `post` behind the op

    W' = W * post.scale[out_of] * pre.scale[in_of]
    b' = post.scale * (b + sum of W * pre.shift[in_of] per output channel) + post.shift
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bntool.algebra.affine import Array, ChannelAffine

Attrs = Mapping[str, Any]
Sizes = tuple[int, ...]
#: weight's shape, attributes -> the channel each weight element connects
ChannelOf = Callable[[Sizes, Attrs], NDArray[np.int64]]


@dataclass(frozen=True)
class Linear:
    """A row of the table: which axis of the op's value holds channels, and how its weight is laid out."""

    axis: Callable[[Attrs], int]
    out_of: ChannelOf
    in_of: ChannelOf | None


@lru_cache(64)
def _along(count: int, axis: int, rank: int) -> NDArray[np.int64]:
    """0, 1, ... along one axis of `rank`. (The layers of a model have few widths.)"""
    shape = [1] * rank
    shape[axis] = -1
    numbers = np.arange(count).reshape(shape)
    numbers.flags.writeable = False
    return numbers


def _first(shape: Sizes, attrs: Attrs) -> NDArray[np.int64]:
    """The channels that a convolution's weight (channels, other / groups, *kernel) has on its first axis."""
    return _along(shape[0], 0, len(shape))


def _second(shape: Sizes, attrs: Attrs) -> NDArray[np.int64]:
    """The channels on its second axis: those of the group that the first axis is in."""
    within = _along(shape[1], 1, len(shape))
    if attrs["groups"] == 1:
        return within
    group: NDArray[np.int64] = _first(shape, attrs) // (shape[0] // attrs["groups"])
    return group * shape[1] + within


def _row(shape: Sizes, attrs: Attrs) -> NDArray[np.int64]:
    return _along(shape[-2], 0, 2)


def _column(shape: Sizes, attrs: Attrs) -> NDArray[np.int64]:
    return _along(shape[-1], 1, 2)


def _either(which: Callable[[Attrs], bool], yes: ChannelOf, no: ChannelOf) -> ChannelOf:
    return lambda shape, attrs: (yes if which(attrs) else no)(shape, attrs)


def _transposed(attrs: Attrs) -> bool:
    return bool(attrs.get("transposed"))


def _left(attrs: Attrs) -> bool:
    return bool(attrs["side"] == "left")


def _before_taps(attrs: Attrs) -> int:
    return -(int(attrs["rank"]) + 1)


def _last(attrs: Attrs) -> int:
    return -1


LINEAR: dict[str, Linear] = {
    "conv": Linear(_before_taps, _first, _second),
    "conv_transpose": Linear(_before_taps, _second, _first),
    "linear": Linear(_last, _either(_transposed, _column, _row), _either(_transposed, _row, _column)),
    "matmul_const": Linear(
        lambda attrs: -2 if _left(attrs) else -1, _either(_left, _row, _column), _either(_left, _column, _row)
    ),
    "embedding": Linear(_last, _column, None),
}


def out_channels(kind: str, shape: Sizes, attrs: Attrs) -> int:
    return _count(LINEAR[kind].out_of(shape, attrs))


def in_channels(kind: str, shape: Sizes, attrs: Attrs) -> int:
    in_of = LINEAR[kind].in_of
    return 0 if in_of is None else _count(in_of(shape, attrs))


def _count(channels: NDArray[np.int64]) -> int:
    """How many there are: the last element of a weight connects the last one."""
    return int(channels.flat[-1]) + 1 if channels.size else 0


def factor(
    kind: str, shape: Sizes, attrs: Attrs, pre: ChannelAffine | None, post: ChannelAffine | None
) -> Array:
    """What the weight is multiplied with, broadcastable to its shape. `pre`, `post`: shape (channels,)."""
    row, result = LINEAR[kind], np.ones((1,) * len(shape))
    if post is not None and post.scales:
        result = post.scale[row.out_of(shape, attrs)]
    if pre is not None and row.in_of is not None and pre.scales:
        result = result * pre.scale[row.in_of(shape, attrs)]
    return result


def carried(kind: str, weight: Array, attrs: Attrs, shift: Array) -> Array:
    """What a shift of the input (shape (in,)) adds to every output channel: shape (out,)."""
    row = LINEAR[kind]
    assert row.in_of is not None
    product = weight * shift[row.in_of(weight.shape, attrs)]
    outs = np.broadcast_to(row.out_of(weight.shape, attrs), weight.shape)
    count = out_channels(kind, weight.shape, attrs)
    return np.bincount(outs.ravel(), product.ravel(), count).astype(np.float64)


def new_bias(bias: Array | None, carry: Array | None, post: ChannelAffine | None, outs: int) -> Array | None:
    """`post.scale * (bias + carry) + post.shift`, shape (out,); None when it comes out all zero."""
    total = np.zeros(outs) if bias is None else bias.astype(np.float64)
    if carry is not None:
        total = total + carry
    if post is not None:
        total = post(total)
    return total if np.count_nonzero(total) else None


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
