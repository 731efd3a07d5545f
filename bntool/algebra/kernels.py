"""Convolutions as values: adding parallel ones, composing chained ones, and writing other linear ops as one.

    y[o] = bias + sum over taps j of weight[j] * x[stride * o - padding + dilation * j],   x zero outside

A linear layer is the case of no taps at all. Sources for parallel sums: Ding et al. 2021, "RepVGG" (section
3.3) and "Diverse Branch Block" (section 3.2). Unlike there, chains that padding would make inexact at
the border are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from bntool.algebra.affine import Array, Blocked, ChannelAffine

Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution with padding, the same on both sides.

    Shapes: `weight` (out, in / groups, *taps), `bias` (out,); `stride`, `padding` and `dilation` one number
    per tap dimension, none for a linear layer. `mode` is what it pads with: zeros, or values of its input's,
    as torch's convolutions call it.
    """

    weight: Array
    bias: Array
    groups: int = 1
    stride: Sizes = ()
    padding: Sizes = ()
    dilation: Sizes = ()
    mode: str = "zeros"

    @property
    def taps(self) -> Sizes:
        return self.weight.shape[2:]

    @property
    def rank(self) -> int:
        return self.weight.ndim - 2

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    @property
    def macs(self) -> int:
        """Multiplications per output position."""
        return int(self.weight.size)


def identity(channels: int, rank: int) -> Kernel:
    """`y = x`, one group a channel."""
    ones = (1,) * rank
    weight = np.ones((channels, 1, *ones))
    return Kernel(weight, np.zeros(channels), channels, ones, (0,) * rank, ones)


def padded(channels: int, padding: Sizes, mode: str) -> Kernel:
    """`y = x` with zeros, or more of itself, around it."""
    return replace(identity(channels, len(padding)), padding=padding, mode=mode)


def without_padding(kernel: Kernel) -> Kernel:
    """What is left of the kernel behind a padding by itself."""
    return replace(kernel, padding=(0,) * kernel.rank, mode="zeros")


def average(channels: int, taps: Sizes, stride: Sizes, padding: Sizes) -> Kernel:
    """Average pooling whose padding counts: every tap weighs the same."""
    weight = np.full((channels, 1, *taps), 1.0 / np.prod(taps))
    return Kernel(weight, np.zeros(channels), channels, stride, padding, (1,) * len(taps))


def scaled(kernel: Kernel, m: ChannelAffine) -> Kernel:
    """`m` behind the kernel. Shapes: `m` is (out,)."""
    scale = m.scale.reshape(-1, *(1,) * (kernel.weight.ndim - 1))
    return replace(kernel, weight=kernel.weight * scale, bias=kernel.bias * m.scale + m.shift)


def regrouped(kernel: Kernel, groups: int) -> Kernel:
    """The same function with fewer groups, a divisor of its own: zeros between the groups that are joined."""
    assert kernel.groups % groups == 0
    joined = kernel.groups // groups
    if joined == 1:
        return kernel
    outs, per_group = kernel.weight.shape[:2]
    weight = np.zeros((outs, per_group * joined, *kernel.taps))
    rows = outs // kernel.groups
    for group in range(kernel.groups):
        column = group % joined * per_group
        own = slice(group * rows, (group + 1) * rows)
        weight[own, column : column + per_group] = kernel.weight[own]
    return replace(kernel, weight=weight, groups=groups)


def inflated(kernel: Kernel, dilation: Sizes) -> Kernel:
    """The same function with a smaller dilation, a divisor of its own: zeros between the taps."""
    steps = [old // new for old, new in zip(kernel.dilation, dilation, strict=True)]
    sizes = [(n - 1) * step + 1 for n, step in zip(kernel.taps, steps, strict=True)]
    weight = np.zeros((*kernel.weight.shape[:2], *sizes))
    own = tuple(slice(None, None, step) for step in steps)
    weight[(slice(None), slice(None), *own)] = kernel.weight
    return replace(kernel, weight=weight, dilation=dilation)


def widened(kernel: Kernel, padding: Sizes) -> Kernel | Blocked:
    """The same function with more padding: zero taps around, as many before as behind."""
    more = [new - old for old, new in zip(kernel.padding, padding, strict=True)]
    if any(m < 0 or m % d for m, d in zip(more, kernel.dilation, strict=True)):
        return Blocked("its padding is no multiple of its dilation away from the other's")
    around = [(m // d, m // d) for m, d in zip(more, kernel.dilation, strict=True)]
    weight = np.pad(kernel.weight, [(0, 0), (0, 0), *around])
    return replace(kernel, weight=weight, padding=padding)


def common_dilation(a: Kernel, b: Kernel) -> Sizes:
    """A dilation both can be written with; a kernel of one tap takes any."""

    def both(da: int, na: int, db: int, nb: int) -> int:
        if na == 1 or nb == 1:
            return db if na == 1 else da
        return gcd(da, db)

    return tuple(map(both, a.dilation, a.taps, b.dilation, b.taps))


def single_tap_dilation(kernel: Kernel, dilation: Sizes) -> Kernel:
    """The kernel with dimensions of one tap renamed to `dilation`, which changes nothing."""
    own = zip(kernel.taps, kernel.dilation, dilation, strict=True)
    return replace(kernel, dilation=tuple(new if n == 1 else old for n, old, new in own))


def aligned(kernel: Kernel, other: Kernel) -> Kernel | Blocked:
    """`kernel` in the groups, dilation and padding in which it can be added to `other`."""
    dilation = common_dilation(kernel, other)
    kernel = inflated(single_tap_dilation(kernel, dilation), dilation)
    padding = tuple(max(p, q) for p, q in zip(kernel.padding, other.padding, strict=True))
    return widened(regrouped(kernel, gcd(kernel.groups, other.groups)), padding)


def plus(a: Kernel, b: Kernel) -> Kernel | Blocked:
    """`y = a(x) + b(x)` as one kernel."""
    if (a.rank, a.in_channels, a.out_channels) != (b.rank, b.in_channels, b.out_channels):
        return Blocked("the branches differ in channels")
    if a.stride != b.stride:
        return Blocked("the branches have different strides")
    mode = common_mode(a, b)
    if isinstance(mode, Blocked):
        return mode
    left, right = aligned(a, b), aligned(b, a)
    if isinstance(left, Blocked) or isinstance(right, Blocked):
        return left if isinstance(left, Blocked) else right
    if left.taps != right.taps:
        return Blocked("the branches' kernels have different centres")
    return replace(left, weight=left.weight + right.weight, bias=left.bias + right.bias, mode=mode)


def common_mode(a: Kernel, b: Kernel) -> str | Blocked:
    """With what both pad, if they do."""
    modes = {kernel.mode for kernel in (a, b) if any(kernel.padding)} or {"zeros"}
    return modes.pop() if len(modes) == 1 else Blocked("they pad with different values")


def then(first: Kernel, second: Kernel) -> Kernel | Blocked:
    """`y = second(first(x))` as one kernel, where it is exact."""
    if first.rank != second.rank or first.out_channels != second.in_channels:
        return Blocked("the layers do not fit one another")
    mode = common_mode(first, second)
    for refusal in (mode, _border(first, second), _grid(first, second)):
        if isinstance(refusal, Blocked):
            return refusal
    assert isinstance(mode, str)
    groups = gcd(first.groups, second.groups)
    a, b = regrouped(first, groups), regrouped(second, groups)
    weight = _per_group(a, b, _compose)
    bias = _per_group(a, b, _carry) + b.bias
    return Kernel(
        weight,
        bias,
        groups,
        tuple(s * t for s, t in zip(a.stride, b.stride, strict=True)),
        tuple(p + q * s for p, q, s in zip(a.padding, b.padding, a.stride, strict=True)),
        tuple(d if n > 1 else e for d, n, e in zip(a.dilation, a.taps, b.dilation, strict=True)),
        mode,
    )


def _border(first: Kernel, second: Kernel) -> Blocked | None:
    """The second's padding puts other values where the first, carried on, would give its own."""
    hidden = [d for d, width in enumerate(second.padding) if width]
    zeros = second.mode == "zeros"
    if hidden and zeros and first.bias.any():
        return Blocked("the second layer's zero padding would need the first one's bias")
    if any(first.taps[d] > 1 or not (zeros or first.stride[d] == 1 > first.padding[d]) for d in hidden):
        return Blocked("the second layer's padding cuts the first one's border")
    return None


def _grid(first: Kernel, second: Kernel) -> Blocked | None:
    """Taps of the composition must lie on one grid, dense enough to be worth writing down."""
    for n, d, m, e, s in zip(
        first.taps, first.dilation, second.taps, second.dilation, first.stride, strict=True
    ):
        if n > 1 and m > 1 and (s > 1 or d != e):
            return Blocked("the layers' strides and dilations differ")
        if m > 1 and s > 1:
            return Blocked("the first layer's stride skips what the second one reads")
    return None


def _per_group(a: Kernel, b: Kernel, work: Callable[[Kernel, Kernel], Array]) -> Array:
    """`work` on the a- and b-kernels of each group, put together along the outputs."""
    return np.concatenate([work(group_of(a, g), group_of(b, g)) for g in range(a.groups)])


def group_of(kernel: Kernel, group: int) -> Kernel:
    rows = kernel.out_channels // kernel.groups
    own = slice(group * rows, (group + 1) * rows)
    return replace(kernel, weight=kernel.weight[own], bias=kernel.bias[own], groups=1)


def _compose(a: Kernel, b: Kernel) -> Array:
    """W[o, i, j + k] = sum over m of b[o, m, k] * a[m, i, j]"""
    taps = [n + m - 1 for n, m in zip(a.taps, b.taps, strict=True)]
    out = np.zeros((b.out_channels, a.in_channels, *taps))
    for where in np.ndindex(*b.taps):
        window = tuple(slice(k, k + n) for k, n in zip(where, a.taps, strict=True))
        tap = b.weight[(slice(None), slice(None), *where)]
        out[(slice(None), slice(None), *window)] += np.tensordot(tap, a.weight, axes=(1, 0))
    return out


def _carry(a: Kernel, b: Kernel) -> Array:
    """What the first layer's bias adds to the second's output."""
    summed: Array = b.weight.reshape(*b.weight.shape[:2], -1).sum(-1) @ a.bias
    return summed
