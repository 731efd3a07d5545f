"""What writes in place, in every spelling, in modules and in programs: folded right or left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import Block, error, names, prepared

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = 1e-11


def left(change: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """`n` itself, after something was done to it, or to a view of it."""
    return lambda n, x: (change(n, x), n)[1]


#: what becomes of two layers' values n and x
WRITTEN = {
    "zeros in a channel": left(lambda n, x: n[:, 1].zero_()),
    "a number in a view of a view": left(lambda n, x: n.flatten(1)[:, :3].fill_(2.0)),
    "values set": left(lambda n, x: n.__setitem__((slice(None), 0), x[:, 0])),
    "values copied": left(lambda n, x: n[:, 2].copy_(x[:, 1])),
    "an activation of a view": left(lambda n, x: n[:, 1].sigmoid_()),
    "into the other value": lambda n, x: (x[:, 0].fill_(1.0), n + x)[1],
    "out": lambda n, x: (total := torch.zeros_like(x), torch.add(n, x, out=total))[0],
    "out of itself": left(lambda n, x: torch.sigmoid(n, out=n)),
    "floor division": left(lambda n, x: n.__ifloordiv__(2.0)),
    "power": left(lambda n, x: n.__ipow__(2.0)),
    "remainder": left(lambda n, x: n.__imod__(1.5)),
}


def nets(combine: Callable[[Tensor, Tensor], Tensor]) -> list[nn.Module]:
    """The op behind a norm that would go down, and in front of one that would go up."""
    conv, other, norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    down = Block(lambda m, x: m.conv(combine(m.norm(y := x.tanh()), y)), conv=conv, norm=norm)
    up = Block(lambda m, x: m.norm(combine(m.conv(x), m.other(x))), conv=conv, other=other, norm=norm)
    return [prepared(net, X).requires_grad_(False) for net in (down, up)]


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("merge", [False, True])
def test_what_is_overwritten_is_known_to_be(how: str, merge: bool) -> None:
    for net in nets(WRITTEN[how]):
        assert error(net, fold(net, X, verify=False).model, X) < EXACT
        program = torch.export.export(net, (X,), strict=False)
        for form in (program, program.run_decompositions()):
            folded = fold(form, verify=False, merge=merge).model
            assert error(form.module(), folded.module(), X) < EXACT


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_a_quotient_that_is_rounded_is_no_quotient(mode: str) -> None:
    for net in nets(lambda n, x: torch.div(n, 2.0, rounding_mode=mode)):
        program = torch.export.export(net, (X,), strict=False)
        for form in (program, program.run_decompositions()):
            assert not fold(form, verify=False).report.folded


OTHER_NAMES = {
    "rsub": lambda n, x: 1 - n,
    "multiply": lambda n, x: torch.multiply(n, 2.0),
    "subtract": lambda n, x: torch.subtract(n, 2.0),
    "divide": lambda n, x: torch.divide(n, 2.0),
    "negative": lambda n, x: torch.negative(n),
    "neg_": lambda n, x: n.neg_(),
    "swapaxes": lambda n, x: n.swapaxes(2, 3),
    "mT": lambda n, x: n.mT,
    "rot90": lambda n, x: n.rot90(1, (2, 3)),
    "repeat": lambda n, x: n.repeat(1, 1, 2, 1),
    "index": lambda n, x: n[:, [0, 2, 1, 3]],
}


@pytest.mark.parametrize("how", OTHER_NAMES)
def test_a_program_folds_through_what_a_module_folds_through(how: str) -> None:
    for net in nets(OTHER_NAMES[how]):
        program = torch.export.export(net, (X,), strict=False)
        for model in (net, program, program.run_decompositions()):
            result = fold(model, None if model is program else X, verify=False)
            assert names(result.report.folded) == ["norm"]
            run = result.model if model is net else result.model.module()
            assert error(net, run, X) < EXACT
