"""Table: which nodes take a map into their parameters, on which side, in which form, and what they become.

A form is the map as the parameters see it: per channel (C,) for linear ops and norms, in the parameter's own
shape for operands and layer norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.algebra.linear import LINEAR, in_channels, out_channels
from bntool.algebra.moves import unbroadcast

PADDED = Blocked("its zero padding would need the shift too")
UNLIKE = Blocked("the map differs along more than its channels")
Attrs = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
NORMS = ("batch_norm", "instance_norm")
#: kinds that take a map behind them elementwise into the named parameters
AFFINE = ("layer_norm", "group_norm")


def channel_map(m: ChannelAffine, axis: int, channels: int) -> ChannelAffine | Blocked:
    """A map on a value as a map of shape (channels,) along `axis` (negative), or why it is none."""
    if axis + len(m.shape) < 0:
        return Blocked("the map has fewer dimensions than its value")
    if m.scale.size != m.shape[axis]:
        return UNLIKE
    if m.shape[axis] not in (1, channels):
        return Blocked("the map's channels are not its channels")
    one = m.reshape((-1,))
    return ChannelAffine(one.scale.repeat(channels), one.shift.repeat(channels)) if one.shape == (1,) else one


def takes_away(kind: str, attrs: Attrs, m: ChannelAffine) -> bool:
    """Whether what a node gives is the same without `m` on its input: a layer norm takes the mean off."""
    last = attrs.get("normalized", 0) if kind == "layer_norm" else 0
    return 0 < last <= len(m.shape) and not m.scales and set(m.shape[-last:]) == {1}


def behind(kind: str, attrs: Attrs, shapes: Shapes, m: ChannelAffine) -> ChannelAffine | Blocked:
    """The form in which a node takes `m` after it."""
    if kind == "embedding":
        return channel_map(m, -1, shapes["weight"][-1])
    if kind in LINEAR:
        return _behind_linear(kind, attrs, shapes, m)
    if kind == "parameter":
        return unbroadcast(m, shapes["value"])
    if kind in (*NORMS, *AFFINE):
        return _behind_norm(kind, attrs, shapes, m)
    return Blocked(f"{attrs.get('what', kind)} takes no map")


def _behind_linear(kind: str, attrs: Attrs, shapes: Shapes, m: ChannelAffine) -> ChannelAffine | Blocked:
    form = channel_map(m, LINEAR[kind].axis(attrs), out_channels(kind, shapes["weight"], attrs))
    if isinstance(form, Blocked) or not form.shifts or "bias" in shapes or not attrs.get("no_bias"):
        return form
    return Blocked(str(attrs["no_bias"]))


def _behind_norm(kind: str, attrs: Attrs, shapes: Shapes, m: ChannelAffine) -> ChannelAffine | Blocked:
    if "weight" not in shapes or "bias" not in shapes:
        return Blocked("it has no weight and bias to take a map")
    if kind == "layer_norm":
        return unbroadcast(m, shapes["weight"])
    return channel_map(m, 1 - len(m.shape), shapes["weight"][0])


def before(kind: str, attrs: Attrs, shapes: Shapes, m: ChannelAffine) -> ChannelAffine | Blocked:
    """The form in which a node takes `m` in front of it."""
    if kind in NORMS:
        return _behind_norm(kind, attrs, shapes, m)
    if kind not in LINEAR or kind == "embedding":
        return Blocked(f"{attrs.get('what', kind)} takes no map")
    form = channel_map(m, LINEAR[kind].axis(attrs), in_channels(kind, shapes["weight"], attrs))
    if isinstance(form, Blocked) or not form.shifts:
        return form
    if attrs.get("padded"):
        return PADDED
    if "bias" not in shapes and attrs.get("no_bias"):
        return Blocked(str(attrs["no_bias"]))
    return form
