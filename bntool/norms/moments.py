"""Pooled mean and variance per channel, exact for ragged batches and far from zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from math import isfinite

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

    @cached_property
    def finite(self) -> bool:
        """Whether all values were: one that is not leaves no finite deviation in its plane."""
        return isfinite(self.m2.sum())

    def pooled(self, start: int = 0, stop: int | None = None) -> Moments:
        """The samples `start` to `stop` as one set of values."""
        mean, m2 = self.mean[start:stop], self.m2[start:stop]
        centre = mean.mean(0)
        spread = (mean - centre).square().sum(0) * self.length
        return Moments(self.length * len(mean), centre, m2.sum(0) + spread)


def pooled(parts: Iterable[Planes]) -> Moments:
    """All planes of `parts` (at least one) as one set of values."""
    by_length: dict[int, list[Planes]] = {}
    for part in parts:
        by_length.setdefault(part.length, []).append(part)
    together = (
        Planes(length, torch.cat([p.mean for p in alike]), torch.cat([p.m2 for p in alike]))
        for length, alike in by_length.items()
    )
    return merged(planes.pooled() for planes in together)


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
        if found.finite:
            return found
    return _centred(rows.double())  # short planes; or squares that overflow float32


def _centred(rows: Tensor) -> Planes:
    """The moments of each row, from deviations from the row's own rounded mean.

    So nothing cancels however far from zero the values lie. What rounding the mean left over is put back:
    sum(d^2) - sum(d)^2 / L. A few rows at a time, so that their deviations stay in the cache.
    """
    n, c, length = rows.shape
    rows = rows.reshape(n * c, length)
    step = max(1, CACHED // max(1, length))
    deviations = torch.empty_like(rows[:step])
    centre, rest, norm = rows.new_empty(n * c, 1), rows.new_empty(n * c), rows.new_empty(n * c)
    for at in range(0, n * c, step):
        part, to = rows[at : at + step], slice(at, at + step)
        torch.mean(part, 1, keepdim=True, out=centre[to])
        deviation = torch.sub(part, centre[to], out=deviations[: len(part)])
        torch.sum(deviation, 1, out=rest[to])
        torch.linalg.vector_norm(deviation, dim=1, out=norm[to])
    rest = rest.double().div_(length)
    m2 = norm.double().square_().addcmul_(rest, rest, value=-length).clamp_min_(0.0)
    return Planes(length, (centre.squeeze(1) + rest).view(n, c), m2.view(n, c))


def moments(values: Tensor, channel_dim: int = 1) -> Moments:
    """The moments of one batch."""
    return planes(values, channel_dim).pooled()
