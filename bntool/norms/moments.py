"""Pooled mean and variance per channel, exact for ragged batches and far from zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import inf, isfinite

import torch
from torch import Tensor

#: below this many values in a row, work on each row costs more than work on its values
SHORT_ROW = 16

#: values whose squares are added up in float32, at most
LONG_ROW = 4096

#: mean^2 over variance up to which sums of squares are exact enough: two bits of them are lost
FAR = 3

#: values worked on at once in float64: 512 KiB
CACHED = 1 << 16


@dataclass(frozen=True)
class Moments:
    """`count` values per channel with mean `mean` and sum of squared deviations `m2`, both float64.

    Shapes: mean and m2 (C,).
    """

    count: int
    mean: Tensor
    m2: Tensor

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together.

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979).
        """
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def variance(self, *, unbiased: bool = True) -> Tensor:
        """sum of squared deviations / (count - 1), or / count when not `unbiased`."""
        return self.m2 / (self.count - 1 if unbiased else self.count)

    @property
    def finite(self) -> bool:
        """Whether all values were: one that is not leaves no finite deviation."""
        return isfinite(self.m2.sum())


def merged(parts: Iterable[Moments]) -> Moments:
    """All `parts` (at least one) as one."""
    return reduce(Moments.merge, parts)


def moments(values: Tensor, channel_dim: int = 1) -> Moments:
    """The moments of a batch whose channels are in `channel_dim`.

    Shapes: values (N, C), (N, C, *space), or (*positions, C) with channel_dim = -1.
    """
    values = values.detach()
    if channel_dim == -1:
        values = values.flatten(0, -2)
    rows = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
    if rows.dtype == torch.float64:
        return _centred(rows)
    found = _summed(rows.float())
    far = _far_from_zero(found)
    if len(far):
        exact = _centred(rows.index_select(1, far))
        found.mean.index_copy_(0, far, exact.mean)
        found.m2.index_copy_(0, far, exact.m2)
    return found


def _summed(rows: Tensor) -> Moments:
    """The moments from sum(x) and sum(x^2): right where the mean is not far from zero."""
    n, _, length = rows.shape
    if length < min(SHORT_ROW, n):
        total, squares = rows.sum(0), rows.square().sum(0)
        mean, m2 = total.sum(1, dtype=torch.float64), squares.sum(1, dtype=torch.float64)
    else:
        mean = rows.sum(2).sum(0, dtype=torch.float64)
        m2 = reduce(torch.add, map(_squares, rows.split(LONG_ROW, 2)))
    count = n * length
    mean /= count
    return Moments(count, mean, m2.addcmul_(mean, mean, value=-count))


def _squares(rows: Tensor) -> Tensor:
    """The sum of squares of every channel, without writing down the squares."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=2)
    return norm.double().square_().sum(0)


def _far_from_zero(found: Moments) -> Tensor:
    """The channels of whose digits sum(x^2) has too few, as the mean is most of it.

    What is not finite is among them: squares overflow float32 where float64 holds them.
    """
    spare = torch.addcmul(FAR * found.m2, found.mean, found.mean, value=-found.count)
    low, high = torch.aminmax(spare)
    if low.item() >= 0 and high.item() < inf:
        return spare.new_empty(0, dtype=torch.long)
    return torch.nonzero(~((spare >= 0) & (spare < inf))).squeeze(1)


def _centred(rows: Tensor) -> Moments:
    """The moments from deviations from the mean, in float64, of a few samples at a time."""
    _, channels, length = rows.shape
    return merged(map(_of_deviations, rows.split(max(1, CACHED // (channels * length)))))


def _of_deviations(rows: Tensor) -> Moments:
    wide = rows.double()
    mean = wide.mean((0, 2))
    m2 = (wide - mean.unsqueeze(1)).square_().sum((0, 2))
    return Moments(len(rows) * rows.shape[2], mean, m2)
