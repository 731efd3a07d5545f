"""Pooled mean and variance per channel, exact for ragged batches and far from zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

#: below this many values in a plane, converting everything to float64 costs nothing worth saving
SHORT_PLANE = 16

#: values worked on at once: 4 MiB in float32
CACHED = 1 << 20


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
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.m2).all())


def merged(parts: Iterable[Moments]) -> Moments:
    """All `parts` (at least one) as one."""
    return reduce(Moments.merge, parts)


@dataclass(frozen=True)
class Planes:
    """The moments of every (sample, channel) plane of a batch: `length` values each.

    Shapes: mean and m2 (N, C), float64.
    """

    length: int
    mean: Tensor
    m2: Tensor

    def pooled(self, start: int = 0, stop: int | None = None) -> Moments:
        """The samples `start` to `stop` as one set of values."""
        mean, m2 = self.mean[start:stop], self.m2[start:stop]
        centre = mean.mean(0)
        spread = (mean - centre).square().sum(0) * self.length
        return Moments(self.length * len(mean), centre, m2.sum(0) + spread)


def planes(values: Tensor, channel_dim: int = 1) -> Planes:
    """The planes of a batch whose channels are in `channel_dim`; channels last makes every position a sample.

    Shapes: values (N, C), (N, C, *space), or (*positions, C) with channel_dim = -1.
    """
    values = values.detach()
    if channel_dim == -1:
        values = values.flatten(0, -2)
    rows = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
    if rows.shape[2] >= SHORT_PLANE and rows.dtype != torch.float64:
        found = _centred(rows.float())
        if bool(torch.isfinite(found.m2).all()):
            return found
    return _centred(rows.double())  # short planes; or squares that overflow float32


def _centred(rows: Tensor) -> Planes:
    """The moments of each row, a few at a time so that the deviations stay in the cache."""
    n, c, length = rows.shape
    step = max(1, CACHED // max(1, length))
    parts = [_deviations(part) for part in torch.split(rows.reshape(n * c, length), step)]
    mean, m2 = (torch.cat(found).view(n, c) for found in zip(*parts, strict=True))
    return Planes(length, mean, m2)


def _deviations(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each row, from deviations from the row's own rounded mean.

    So nothing cancels however far from zero the values lie. What rounding the mean left over is put back:
    sum(d^2) - sum(d)^2 / L.
    """
    length = rows.shape[1]
    centre = rows.mean(1, keepdim=True)
    deviation = rows - centre
    rest = deviation.sum(1).double() / length
    squares = torch.linalg.vector_norm(deviation, dim=1).double().square()
    return centre.squeeze(1).double() + rest, (squares - length * rest.square()).clamp_min(0.0)


def moments(values: Tensor, channel_dim: int = 1) -> Moments:
    """The moments of one batch."""
    return planes(values, channel_dim).pooled()
