"""Maps through data movement: gathered downwards, scattered upwards, one rule for every such op.

`index` says for every output element which input element (flat) it copies, -1 for a zero. Dimensions along
which a map does not vary are kept at size 1, so that the result reads as "per channel" wherever it is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bntool.algebra.affine import Array, Blocked, ChannelAffine

Index = NDArray[np.int64]
CONFLICT = Blocked("elements it copies to several places would need different maps")
HIDDEN = Blocked("the zeros it pads with would need the shift too")


def gather(m: ChannelAffine, sizes: Sequence[int], index: Index) -> ChannelAffine:
    """The map `g` with `move(m(x)) = g(move(x))`. A padded zero must stay zero; its scale is free."""
    scale = _take(m.scale, sizes, index, np.nan)
    shift = _take(m.shift, sizes, index, 0.0)
    return ChannelAffine(squeeze(scale, 1.0), squeeze(shift, 0.0)).aligned()


def scatter(m: ChannelAffine, sizes: Sequence[int], index: Index, *, fill: bool) -> ChannelAffine | Blocked:
    """The map `g` with `m(move(x)) = move(g(x))`, or why there is none.

    Elements that are not copied are free: they take whatever keeps the map simplest, or the identity with
    `fill` (others read them).
    """
    if m.shifts and np.broadcast_to(m.shift, index.shape)[index < 0].any():
        return HIDDEN
    scale = _put(_plain(m.scale, m.scales), sizes, index)
    shift = _put(_plain(m.shift, m.shifts), sizes, index)
    if scale is None or shift is None:
        return CONFLICT
    if fill:
        scale, shift = np.nan_to_num(scale, nan=1.0), np.nan_to_num(shift, nan=0.0)
    return ChannelAffine(squeeze(scale, 1.0), squeeze(shift, 0.0)).aligned()


def _take(values: Array, sizes: Sequence[int], index: Index, outside: float) -> Array:
    flat = np.broadcast_to(values, tuple(sizes)).reshape(-1)
    return np.where(index < 0, outside, flat[index]) if (index < 0).any() else flat[index]


def _plain(values: Array, matters: bool) -> Array:
    """One number for all places where there is no scale, or no shift."""
    return values if matters else values.reshape(-1)[:1]


def _put(values: Array, sizes: Sequence[int], index: Index) -> Array | None:
    """`values` at the places they come from, NaN elsewhere; None where two disagree."""
    if values.size == 1:  # the same everywhere: nothing can disagree
        return values.reshape((1,) * len(sizes))
    wanted, places = np.broadcast_to(values, index.shape), index
    if (index < 0).any():
        wanted, places = wanted[index >= 0], index[index >= 0]
    flat = np.full(int(np.prod(sizes)), np.nan)
    flat[places] = wanted
    return flat.reshape(tuple(sizes)) if np.array_equal(flat[places], wanted) else None


def squeeze(values: Array, default: float) -> Array:
    """Shrink every dimension along which `values` does not vary to size 1; NaN is free to be anything."""
    free = bool(np.isnan(values).any())
    for axis in range(values.ndim):
        if values.shape[axis] <= 1:
            continue
        narrow = _constant_along(values, axis, free)
        if narrow is not None:
            values = narrow
    return np.nan_to_num(values, nan=default) if free else values


def _constant_along(values: Array, axis: int, free: bool) -> Array | None:
    if not free:
        first = values.take([0], axis)
        return first if (values == first).all() else None
    low = np.fmin.reduce(values, axis, keepdims=True)
    high = np.fmax.reduce(values, axis, keepdims=True)
    return low if np.array_equal(low, high, equal_nan=True) else None


def fit_together(sizes: Iterable[Sequence[int]]) -> bool:
    """Whether values of these sizes can be added."""
    try:
        np.broadcast_shapes(*map(tuple, sizes))
    except ValueError:
        return False
    return True


def unbroadcast(m: ChannelAffine, sizes: Sequence[int]) -> ChannelAffine | Blocked:
    """The map on an operand of `sizes` that broadcasts to the map's value, or Blocked where it would vary."""
    extra = len(m.shape) - len(sizes)
    assert extra >= 0, "an operand has at most the rank of the result"
    if any(s != 1 for s in m.shape[:extra]):
        return CONFLICT
    trimmed = m.reshape(m.shape[extra:])
    if any(have != 1 and want == 1 for have, want in zip(trimmed.shape, sizes, strict=True)):
        return CONFLICT
    return trimmed
