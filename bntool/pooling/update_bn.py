"""What `torch.optim.swa_utils.update_bn` makes of the same data: torch's own function, on a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bntool.copying import copied
from bntool.errors import RunError
from bntool.pooling.batches import Call
from bntool.sources.importing import said

Statistics = dict[str, tuple[Tensor, Tensor]]


class _Caller(nn.Module):
    """Lets `update_bn`, which gives a model one value, make a whole call of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Call) -> Any:
        return call.run(self.model)


def updated(model: nn.Module, work: Sequence[Call], names: Sequence[str]) -> Statistics | str:
    """Running mean and variance of the norms `names` after `update_bn` over `work`; or what it raises.

    One pass in train mode: every norm normalises by each batch's own statistics, dropouts drop (with a fixed
    seed), and the batches' means and variances are averaged with equal weights. `model` stays as it is.
    """
    fresh = copied(model, {})
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            update_bn(work, _Caller(fresh))
    except RunError as problem:  # whatever the model's code does in train mode
        return said(problem.__cause__ or problem)
    return {name: _statistics(fresh.get_submodule(name)) for name in names}


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    return norm.running_mean.double(), norm.running_var.double()
