"""The map `y = scale * x + shift` that a norm in eval mode is: composing, splitting and refusing maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: what is worked out once for a map, whatever its shape
KNOWN = ("scales", "shifts")


@dataclass(frozen=True)
class Blocked:
    """A thing that cannot be done, as a value: `reason` is a sentence a person can act on."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`y = scale * x + shift`, elementwise.

    Shapes: `scale` and `shift` have one shape that broadcasts against the value the map acts on. A plain
    per-channel map has shape (C,); on a value of known rank every dimension is there, of size 1 where the map
    does not vary: (1, C, 1, 1) on images.
    """

    scale: Array
    shift: Array

    @classmethod
    def identity(cls, *shape: int) -> ChannelAffine:
        return cls(np.ones(shape), np.zeros(shape))

    @classmethod
    def along(cls, vector: ChannelAffine, axis: int, rank: int) -> ChannelAffine:
        """A map of shape (C,) laid along `axis` (may be negative) of a value of `rank` dimensions."""
        shape = [1] * rank
        shape[axis] = -1
        return vector.reshape(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scale.shape

    @cached_property
    def scales(self) -> bool:
        return bool(np.count_nonzero(self.scale != 1))

    @cached_property
    def shifts(self) -> bool:
        return bool(np.count_nonzero(self.shift))

    @property
    def is_identity(self) -> bool:
        return not self.scales and not self.shifts

    def only_scale(self) -> ChannelAffine:
        return ChannelAffine(self.scale, np.zeros_like(self.shift))

    def only_shift(self) -> ChannelAffine:
        return ChannelAffine(np.ones_like(self.scale), self.shift)

    def reshape(self, shape: Sequence[int]) -> ChannelAffine:
        new = ChannelAffine(self.scale.reshape(shape), self.shift.reshape(shape))
        new.__dict__.update({name: self.__dict__[name] for name in KNOWN if name in self.__dict__})
        return new

    def aligned(self) -> ChannelAffine:
        """The same map with scale and shift of one shape (each may have varied along other dimensions)."""
        scale, shift = np.broadcast_arrays(self.scale, self.shift)
        return ChannelAffine(scale, shift)

    def expanded(self, rank: int) -> ChannelAffine:
        """The same map with leading dimensions of size 1 added up to `rank`."""
        return self.reshape((1,) * (rank - len(self.shape)) + self.shape)

    def equals(self, other: ChannelAffine) -> bool:
        return self is other or (
            self.shape == other.shape
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )

    def __call__(self, x: Array) -> Array:
        return self.scale * x + self.shift

    def __matmul__(self, inner: ChannelAffine) -> ChannelAffine:
        """`(outer @ inner)(x) = outer(inner(x))`."""
        scale, shift = self.scale * inner.scale, self.scale * inner.shift + self.shift
        return ChannelAffine(scale, np.broadcast_to(shift, scale.shape))
