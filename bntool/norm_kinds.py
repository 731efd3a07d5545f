"""Table: the name of a norm -> how to build it for a given value, and what it can and cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import nn

from bntool.algebra.affine import Blocked
from bntool.norm_layers import (
    BatchRenorm,
    ChannelLayerNorm,
    ChannelRMSNorm,
    ChannelsLast,
    FrozenBatchNorm,
    GhostBatchNorm,
)

GROUPS = 32
"""Groups of a group norm unless told otherwise. Source: Wu, He, "Group Normalization" (2018), section 4."""


@dataclass(frozen=True)
class Setting:
    """The value a norm is for and how it is set.

    `rank` is the value's number of dimensions (2 for (N, C), 4 for images); `last`: its channels come last.
    `per_sample` is how many values a channel has in one sample (1 for (N, C)), None when unknown.
    """

    channels: int
    rank: int
    last: bool = False
    per_sample: int | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    groups: int | None = None
    virtual_batch_size: int = 32
    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def values_per_sample(self) -> int:
        """Values per channel that a norm of one sample sees; images are taken to have several unless known."""
        if self.last or self.rank == 2:
            return 1
        return self.per_sample or (4 if self.rank > 3 else 1)

    @property
    def place(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype}

    @property
    def batch_arguments(self) -> dict[str, Any]:
        return {"eps": self.eps, "momentum": self.momentum, "affine": self.affine, **self.place}


@dataclass(frozen=True)
class NormKind:
    """One norm: what builds it; whether it can be set to change nothing; whether a bias before it is lost in it."""

    name: str
    make: Callable[[Setting], nn.Module | Blocked]
    preserves: bool = False
    hides_bias: bool = False


def build(name: str, setting: Setting) -> nn.Module | Blocked:
    """The norm `name` for `setting`, or why there is none."""
    return KINDS[name].make(setting)


def _batch(setting: Setting) -> nn.Module | Blocked:
    by_rank = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if setting.last:
        return _over_positions(nn.BatchNorm1d(setting.channels, **setting.batch_arguments), setting)
    if setting.rank not in by_rank:
        return Blocked(f"no batch norm takes {setting.rank} dimensions")
    return by_rank[setting.rank](setting.channels, **setting.batch_arguments)


def _sync(setting: Setting) -> nn.Module | Blocked:
    return _over_positions(nn.SyncBatchNorm(setting.channels, **setting.batch_arguments), setting)


def _renorm(setting: Setting) -> nn.Module | Blocked:
    return _over_positions(BatchRenorm(setting.channels, **setting.batch_arguments), setting)


def _ghost(setting: Setting) -> nn.Module | Blocked:
    size = setting.virtual_batch_size
    norm = GhostBatchNorm(setting.channels, virtual_batch_size=size, **setting.batch_arguments)
    return _over_positions(norm, setting)


def _frozen(setting: Setting) -> nn.Module | Blocked:
    return _over_positions(FrozenBatchNorm(setting.channels, setting.eps, **setting.place), setting)


def _over_positions(norm: nn.Module, setting: Setting) -> nn.Module:
    return ChannelsLast(norm) if setting.last and setting.rank > 2 else norm


def _group(setting: Setting) -> nn.Module | Blocked:
    groups = groups_for(setting.channels, setting.groups, setting.values_per_sample)
    if isinstance(groups, Blocked):
        return groups
    norm = nn.GroupNorm(groups, setting.channels, eps=setting.eps, affine=setting.affine, **setting.place)
    return _over_positions(norm, setting)


def groups_for(channels: int, wanted: int | None, values: int) -> int | Blocked:
    """How many groups: what is wanted, or gcd(32, channels) made smaller until a group has more than one value.

    Norms over one value give the shift whatever the data: that erases it.
    """
    if wanted is not None:
        if channels % wanted:
            return Blocked(f"{channels} channels do not divide into {wanted} groups")
        if channels // wanted * values < 2:
            return Blocked(f"{wanted} groups of {channels} channels are one value each: the norm erases the data")
        return wanted
    groups = gcd(GROUPS, channels)
    while groups > 1 and channels // groups * values < 4:
        groups = max(d for d in range(1, groups) if channels % d == 0)
    return groups if channels // groups * values > 1 else Blocked("one value per sample: the norm erases the data")


def _layer(setting: Setting) -> nn.Module | Blocked:
    if setting.channels < 2:
        return Blocked("one channel: a norm over channels erases the data")
    first = ChannelLayerNorm if setting.rank > 2 and not setting.last else nn.LayerNorm
    return first(setting.channels, eps=setting.eps, elementwise_affine=setting.affine, **setting.place)


def _rms(setting: Setting) -> nn.Module | Blocked:
    if setting.channels < 2:
        return Blocked("one channel: only its sign would be left")
    first = ChannelRMSNorm if setting.rank > 2 and not setting.last else nn.RMSNorm
    return first(setting.channels, eps=setting.eps, elementwise_affine=setting.affine, **setting.place)


def _instance(setting: Setting) -> nn.Module | Blocked:
    by_rank = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    if setting.last or setting.rank not in by_rank or setting.values_per_sample < 2:
        return Blocked("one value per channel and sample: an instance norm erases the data")
    return by_rank[setting.rank](
        setting.channels, eps=setting.eps, affine=setting.affine, **setting.place
    )


KINDS: dict[str, NormKind] = {
    kind.name: kind
    for kind in (
        NormKind("batch", _batch, preserves=True, hides_bias=True),
        NormKind("sync", _sync, preserves=True, hides_bias=True),
        NormKind("renorm", _renorm, preserves=True, hides_bias=True),
        NormKind("ghost", _ghost, preserves=True, hides_bias=True),
        NormKind("frozen", _frozen, preserves=True),
        NormKind("instance", _instance, hides_bias=True),
        NormKind("group", _group),
        NormKind("layer", _layer),
        NormKind("rms", _rms),
    )
}


def choose(effective_batch: int, batch_size: int) -> tuple[str, str]:
    """The norm for statistics over `effective_batch` values (N * H * W) of `batch_size` samples, and why.

    The standard error of a variance estimated from n values is sqrt(2 / (n - 1)) of it.
    """
    n = effective_batch
    error = f"a variance from {n} values is off by {100 * (2 / max(1, n - 1)) ** 0.5:.0f} %"
    if batch_size < 2 or n < 8:
        why = "one sample a batch" if batch_size < 2 else error
        return "group", f"{why}: a norm that does not use the batch"
    if n < 32:
        return "renorm", f"{error}: batch renorm leans on the running statistics"
    return "batch", f"{error}: enough for batch norm"
