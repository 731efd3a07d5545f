"""Sliding windows as graphs write them -> the neutral attributes stride, padding and dilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Sizes = tuple[int, ...]


def window(taps: Sequence[int], stride: Any, padding: Any, dilation: Any = 1) -> dict[str, Sizes]:
    """The attributes of a window of these taps; none where its two sides are not padded alike."""
    rank = len(taps)
    steps = _each(dilation, rank)
    around = _around(taps, padding, steps)
    if around is None or steps is None:
        return {}
    strides = _each(taps if stride in (None, ()) else stride, rank)
    return {} if strides is None else {"stride": strides, "padding": around, "dilation": steps}


def _around(taps: Sequence[int], padding: Any, dilation: Sizes | None) -> Sizes | None:
    if padding == "valid":
        return (0,) * len(taps)
    if padding == "same":
        spread = [d * (n - 1) for d, n in zip(dilation or (), taps, strict=True)]
        return None if any(s % 2 for s in spread) else tuple(s // 2 for s in spread)
    return _each(padding, len(taps))


def _each(value: Any, rank: int) -> Sizes | None:
    """One number for every dimension, or one for all of them."""
    if isinstance(value, int):
        return (value,) * rank
    if not isinstance(value, Sequence) or not all(isinstance(v, int) for v in value):
        return None
    return tuple(value) * rank if len(value) == 1 else tuple(value) if len(value) == rank else None
