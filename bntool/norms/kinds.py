"""Table: the name of a norm -> the module it is for a given value, and what it can and cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from bntool.algebra.affine import Blocked

#: `{"type": ..., "args": {...}}`, as in the edits of a plan
Spec = dict[str, Any]
OWN = "bntool.norms.layers."
GROUPS = 32
"""Groups of a group norm unless told otherwise. Source: Wu, He, "Group Normalization" (2018), section 4."""


def spec(kind: str, **args: Any) -> Spec:
    return {"type": kind, "args": args}


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
    groups: int | None = None
    virtual_batch_size: int = 32

    @property
    def values_per_sample(self) -> int:
        """Values per channel that a norm of one sample sees; images have several unless known."""
        if self.last or self.rank == 2:
            return 1
        return self.per_sample or (4 if self.rank > 3 else 1)

    def with_options(
        self, eps: float, momentum: float | None, groups: int | None, virtual_batch_size: int
    ) -> Setting:
        return replace(self, eps=eps, momentum=momentum, groups=groups, virtual_batch_size=virtual_batch_size)

    @property
    def batch_arguments(self) -> dict[str, Any]:
        return {"num_features": self.channels, "eps": self.eps, "momentum": self.momentum}


@dataclass(frozen=True)
class NormKind:
    """One norm: what describes it, whether it can be set to change nothing, whether it hides a bias."""

    name: str
    make: Callable[[Setting], Spec | Blocked]
    preserves: bool = False
    uses_batch: bool = False
    """Whether training takes statistics over the batch."""
    hides_bias: bool = False


def described(name: str, setting: Setting) -> Spec | Blocked:
    """The norm `name` as data that `bntool.specs.build` makes a module of, or why there is none."""
    return KINDS[name].make(setting)


def _batch(setting: Setting) -> Spec | Blocked:
    by_rank = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    if setting.rank not in by_rank:
        return Blocked(f"no batch norm takes {setting.rank} dimensions")
    name = "BatchNorm1d" if setting.last else by_rank[setting.rank]
    return _over_positions(spec(f"torch.nn.{name}", **setting.batch_arguments), setting)


def _sync(setting: Setting) -> Spec:
    return _over_positions(spec("torch.nn.SyncBatchNorm", **setting.batch_arguments), setting)


def _renorm(setting: Setting) -> Spec:
    return _over_positions(spec(OWN + "BatchRenorm", **setting.batch_arguments), setting)


def _ghost(setting: Setting) -> Spec:
    size = setting.virtual_batch_size
    found = spec(OWN + "GhostBatchNorm", **setting.batch_arguments, virtual_batch_size=size)
    return _over_positions(found, setting)


def _frozen(setting: Setting) -> Spec:
    return _over_positions(
        spec(OWN + "FrozenBatchNorm", num_features=setting.channels, eps=setting.eps), setting
    )


def _over_positions(norm: Spec, setting: Setting) -> Spec:
    """For channels last: every position is a sample of the norm."""
    return spec(OWN + "ChannelsLast", norm=norm) if setting.last and setting.rank > 2 else norm


def _group(setting: Setting) -> Spec | Blocked:
    groups = groups_for(setting.channels, setting.groups, setting.values_per_sample)
    if isinstance(groups, Blocked):
        return groups
    norm = spec("torch.nn.GroupNorm", num_groups=groups, num_channels=setting.channels, eps=setting.eps)
    return _over_positions(norm, setting)


def groups_for(channels: int, wanted: int | None, values: int) -> int | Blocked:
    """How many groups: what is wanted, or gcd(32, channels) made smaller until a group has more than one
    value.

    Norms over one value give the shift whatever the data: that erases it.
    """
    if wanted is not None:
        if channels % wanted:
            return Blocked(f"{channels} channels do not divide into {wanted} groups")
        if channels // wanted * values < 2:
            return Blocked(
                f"{wanted} groups of {channels} channels are one value each: the norm erases the data"
            )
        return wanted
    groups = gcd(GROUPS, channels)
    while groups > 1 and channels // groups * values < 4:
        groups = max(d for d in range(1, groups) if channels % d == 0)
    return (
        groups
        if channels // groups * values > 1
        else Blocked("one value per sample: the norm erases the data")
    )


def _layer(setting: Setting) -> Spec | Blocked:
    if setting.channels < 2:
        return Blocked("one channel: a norm over channels erases the data")
    kind = OWN + "ChannelLayerNorm" if setting.rank > 2 and not setting.last else "torch.nn.LayerNorm"
    return spec(kind, normalized_shape=setting.channels, eps=setting.eps)


def _rms(setting: Setting) -> Spec | Blocked:
    if setting.channels < 2:
        return Blocked("one channel: only its sign would be left")
    kind = OWN + "ChannelRMSNorm" if setting.rank > 2 and not setting.last else "torch.nn.RMSNorm"
    return spec(kind, normalized_shape=setting.channels, eps=setting.eps)


def _instance(setting: Setting) -> Spec | Blocked:
    by_rank = {3: "InstanceNorm1d", 4: "InstanceNorm2d", 5: "InstanceNorm3d"}
    if setting.last or setting.rank not in by_rank or setting.values_per_sample < 2:
        return Blocked("one value per channel and sample: an instance norm erases the data")
    kind = f"torch.nn.{by_rank[setting.rank]}"
    return spec(kind, num_features=setting.channels, eps=setting.eps, affine=True)


KINDS: dict[str, NormKind] = {
    kind.name: kind
    for kind in (
        NormKind("batch", _batch, preserves=True, uses_batch=True, hides_bias=True),
        NormKind("sync", _sync, preserves=True, uses_batch=True, hides_bias=True),
        NormKind("renorm", _renorm, preserves=True, uses_batch=True, hides_bias=True),
        NormKind("ghost", _ghost, preserves=True, uses_batch=True, hides_bias=True),
        NormKind("frozen", _frozen, preserves=True),
        NormKind("instance", _instance, hides_bias=True),
        NormKind("group", _group),
        NormKind("layer", _layer),
        NormKind("rms", _rms),
    )
}


def spread_of_variance(n: int) -> float:
    """The standard error of a variance estimated from n independent normal values, relative to it."""
    return float((2 / max(1, n - 1)) ** 0.5)


def choose(effective_batch: int, batch_size: int) -> tuple[str, str]:
    """The norm for statistics over `effective_batch` values (N * H * W) of `batch_size` samples, and why."""
    n = effective_batch
    error = f"a variance from {n} values is off by {100 * spread_of_variance(n):.0f} %"
    if batch_size < 2 or n < 8:
        why = "one sample a batch" if batch_size < 2 else error
        return "group", f"{why}: a norm that does not use the batch"
    if n < 32:
        return "renorm", f"{error}: batch renorm leans on the running statistics"
    return "batch", f"{error}: enough for batch norm"
