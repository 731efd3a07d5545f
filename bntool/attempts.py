"""The ways in which a norm may go, as goals: its map upwards, downwards, or scale and shift apart."""

from __future__ import annotations

import numpy as np

from bntool.algebra.affine import Blocked, ChannelAffine
from bntool.goals import Cope, Goal, Make
from bntool.graphs.base import Node

#: the calls of a norm, each with its map
Pairs = list[tuple[Node, ChannelAffine]]


def up(pairs: Pairs) -> list[Goal] | Blocked:
    return [Make(c.inputs[0], m, c) for c, m in pairs]


def down(pairs: Pairs) -> list[Goal] | Blocked:
    """The last call first: what is read behind several calls of one norm takes the nearest map outermost."""
    for call, _ in pairs:
        if call.watched or call.changed_by:
            return Blocked(call.watched or f"its output is changed in place by {call.changed_by}")
    return [Cope(reader, port, m) for c, m in reversed(pairs) for reader, port in c.users]


def scale_up(pairs: Pairs) -> list[Goal] | Blocked:
    """`s * x + t`: the scale into what feeds it, the shift into what it feeds."""
    return _both(up([(c, m.only_scale()) for c, m in pairs]), down([(c, m.only_shift()) for c, m in pairs]))


def scale_down(pairs: Pairs) -> list[Goal] | Blocked:
    """`s * (x + t / s)`: the shift into what feeds it, the scale into what it feeds."""
    parts = []
    for c, m in pairs:
        if (m.shift[m.scale == 0] != 0).any():
            return Blocked("a scale of zero")
        ratio = np.divide(m.shift, m.scale, out=np.zeros_like(m.shift), where=m.scale != 0)
        parts.append((c, ChannelAffine(np.ones_like(m.scale), ratio), m.only_scale()))
    return _both(up([(c, shift) for c, shift, _ in parts]), down([(c, scale) for c, _, scale in parts]))


def _both(*parts: list[Goal] | Blocked) -> list[Goal] | Blocked:
    goals: list[Goal] = []
    for part in parts:
        if isinstance(part, Blocked):
            return part
        goals.extend(part)
    return goals


#: in the order in which they are tried
ATTEMPTS = (up, down, scale_up, scale_down)
#: those in which all of a norm's map goes one way
WHOLE = (up, down)
