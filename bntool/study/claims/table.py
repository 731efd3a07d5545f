"""The list of all claims, in the order of the founding text."""

from __future__ import annotations

from collections.abc import Sequence

from bntool.errors import UsageError
from bntool.study.claims.alternatives import Alternatives
from bntool.study.claims.base import Claim
from bntool.study.claims.cost import Cost
from bntool.study.claims.depth import Depth
from bntool.study.claims.regularisation import Regularisation
from bntool.study.claims.small_batches import SmallBatches
from bntool.study.claims.speed import Speed
from bntool.study.claims.stability import Stability

CLAIMS: tuple[Claim, ...] = (
    Stability(),
    Speed(),
    Regularisation(),
    Depth(),
    SmallBatches(),
    Cost(),
    Alternatives(),
)


def chosen(names: Sequence[str]) -> tuple[Claim, ...]:
    """Claims by key or by number from 1.

    Raises: UsageError when a name is unknown.
    """
    if list(names) == ["all"]:
        return CLAIMS
    by_name = {**{c.key: c for c in CLAIMS}, **{str(k): c for k, c in enumerate(CLAIMS, 1)}}
    for name in names:
        if name not in by_name:
            keys = ", ".join(c.key for c in CLAIMS)
            raise UsageError(f"unknown claim {name!r}", where="--claims", next=f"Use all, 1 to 7, or {keys}.")
    wanted = {by_name[n].key for n in names}
    return tuple(c for c in CLAIMS if c.key in wanted)
