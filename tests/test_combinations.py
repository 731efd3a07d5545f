"""Sums that read one value several times are folded through as the linear combination that they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import Block, error, folded, names, prepared

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
#: what becomes of a norm's output n and of its input x, and whether the norm can go down through that
DOWN = {
    "added and taken away": (lambda n, x: (n + x) - x, True),
    "in place": (lambda n, x: (n - x).add_(x), True),
    "a multiple of itself": (lambda n, x: F.dropout(2 * n + 1, training=False) - 3 * n, True),
    "doubled": (lambda n, x: n + n, True),
    "cancelled": (lambda n, x: 2 * n + x - (n + n), True),
    "other reads beside it": (lambda n, x: torch.cat([3 - n - n, n * 2], 1), True),
    "a sum that stays": (lambda n, x: (n + 2 * x) - x, False),
    "a sum that stays, read twice": (lambda n, x: n + (n + x), False),
    "seen on the way": (lambda n, x: torch.cat([(v := n + x) - x, v], 1), False),
    "changed on the way": (lambda n, x: F.relu(n + x, inplace=True) - x, False),
}


@pytest.mark.parametrize("how", DOWN)
def test_a_norm_goes_down_through_a_sum_of_which_it_alone_is_left(how: str) -> None:
    combine, goes = DOWN[how]
    wide = combine(X.clone(), X.clone()).shape[1]
    net = Block(
        lambda m, x: m.next(combine(m.norm(y := x.tanh()), y)),
        norm=nn.BatchNorm2d(4),
        next=nn.Conv2d(wide, 3, 3),
    )
    model = prepared(net, X)
    assert names(folded(model, X, prepare=False)[1].folded) == (["norm"] if goes else [])
    program = torch.export.export(model, (X,))
    result = fold(program)
    assert bool(result.report.folded) == goes
    assert error(model, result.model.module(), X) < 1e-11


#: what a norm reads of a conv's output y and another layer's, which takes no shift, and whether it can go
UP = {
    "a multiple of itself": (lambda y, z: y - 3 * y, True),
    "with an offset": (lambda y, z: (2 * y + 5) - y, True),
    "twice among others": (lambda y, z: y + z + y, True),
    "cancelled": (lambda y, z: (z + y) - z, True),
    "in place": (lambda y, z: (z + y).sub_(z), True),
    "nothing is left to take the shift": (lambda y, z: (y + z) - y, False),
    "seen on the way": (lambda y, z: (v := y + z) - z + F.relu(v), False),
}


@pytest.mark.parametrize("how", UP)
def test_a_map_goes_up_to_every_read_of_a_value_at_once(how: str) -> None:
    combine, goes = UP[how]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.norm(combine(m.conv(x), m.other(x).relu())).tanh()

    layers = {"conv": nn.Conv2d(4, 4, 1), "other": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    net = prepared(Block(forward, **layers), X)
    net.norm.weight.data.abs_()
    assert names(folded(net, X, prepare=False)[1].folded) == (["norm"] if goes else [])
