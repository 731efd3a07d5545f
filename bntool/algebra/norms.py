"""Norm in eval mode -> its map: `scale = gamma / sqrt(var + eps)`, `shift = beta - mean * scale`."""

from __future__ import annotations

from math import isfinite

import numpy as np

from bntool.algebra.affine import Array, Blocked, ChannelAffine

#: var + eps below this is a damaged statistic, not a small one: the smallest normal float32
TINY = float(np.finfo(np.float32).tiny)


def norm_map(
    mean: Array | None, var: Array | None, weight: Array | None, bias: Array | None, eps: float
) -> ChannelAffine | Blocked:
    """The map of shape (C,) that a norm with these parameters applies, or why it is no fixed map.

    Shapes: every array (C,). A missing `weight` counts as ones, a missing `bias` as zeros.
    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3.1.
    """
    if mean is None or var is None:
        return Blocked("it has no running statistics, so it normalises with those of each batch")
    for name, values in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        if values is not None and not _finite(values):
            return Blocked(f"its {name} has NaN or infinite values: repair the checkpoint")
    least = var.min(initial=np.inf)
    if least < 0:
        return Blocked(f"its running variance is {least:.3g} in a channel: recalibrate it")
    if least + eps < TINY:
        return Blocked(f"running variance + eps is {least + eps:.3g} in a channel: recalibrate it")
    deviation = np.sqrt(var + eps)
    scale = 1 / deviation if weight is None else weight / deviation
    shift = -mean * scale if bias is None else bias - mean * scale
    return ChannelAffine(scale, shift)


def _finite(values: Array) -> bool:
    """(The sum of squares, in a fraction of the time, unless it overflows.)"""
    return isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def norm_parameters(total: ChannelAffine, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """The (weight, bias) with which a norm of these statistics applies the map `total`, all of shape (C,)."""
    weight = total.scale * np.sqrt(var + eps)
    return weight, total.shift + total.scale * mean
