"""The map `y[c] = scale[c] * x[c] + shift[c]` that a norm in eval mode is: composing and refusing maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Blocked:
    """A thing that cannot be done, as a value: `reason` is a sentence a person can act on."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`y = scale * x + shift`, elementwise over channels.

    Shapes: `scale` and `shift` have one shape, any shape that broadcasts against the value the map acts on
    (a plain per-channel map has shape (C,)).
    """

    scale: Array
    shift: Array

    @classmethod
    def identity(cls, channels: int) -> ChannelAffine:
        return cls(np.ones(channels), np.zeros(channels))

    def __call__(self, x: Array) -> Array:
        return self.scale * x + self.shift

    def __matmul__(self, inner: ChannelAffine) -> ChannelAffine:
        """`(outer @ inner)(x) = outer(inner(x))`."""
        return ChannelAffine(self.scale * inner.scale, self.scale * inner.shift + self.shift)
