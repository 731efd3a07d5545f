"""Agreement between the processes of torch.distributed; with one process everything here changes nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bntool.norms.moments import Moments, merged


def several() -> bool:
    """Whether this process is one of several that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_of(value: Tensor) -> list[Tensor]:
    """`value` of every process, in rank order."""
    if not several():
        return [value]
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value.contiguous())
    return found


def objects_of(value: Any) -> list[Any]:
    """Anything that can be pickled, of every process, in rank order."""
    if not several():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def smallest(value: int, device: torch.device) -> int:
    """The smallest `value` any process has."""
    return min(int(v) for v in all_of(torch.tensor(value, device=device)))


def total(value: int, device: torch.device) -> int:
    """The sum of all processes' `value`."""
    return sum(int(v) for v in all_of(torch.tensor(value, device=device)))


def pooled(own: Moments) -> Moments:
    """The moments of all processes' values together, the same on every rank."""
    rows = torch.stack((torch.full_like(own.mean, own.count), own.mean, own.m2))
    return merged(Moments(int(r[0, 0].item()), r[1], r[2]) for r in all_of(rows))
