"""Layers whose forward multiplies the weight before it uses it: masks, gains, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import TOLERANCE, Block, error, names, prepared, reason

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Scaled(nn.Conv2d):
    """A convolution that is given `weight` made of its parts."""

    def __init__(self, weight: Callable[[Any], Tensor], **options: Any) -> None:
        super().__init__(4, 4, 3, **options)
        self.made = weight
        self.register_buffer("mask", (torch.rand(4, 4, 3, 3) > 0.4).double())
        self.gain = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.made(self)
        return (F.conv1d, F.conv2d)[weight.ndim - 3](x, weight, self.bias)


PRODUCTS: dict[str, Callable[[Any], Tensor]] = {
    "a mask": lambda c: c.weight * c.mask,
    "a mask in front": lambda c: c.mask.to(c.weight.dtype) * c.weight,
    "a constant": lambda c: torch.mul(c.weight, 0.3),
    "a divisor": lambda c: c.weight / 36**0.5,
    "a gain": lambda c: c.weight * c.gain.view(-1, 1, 1, 1).exp(),
    "a mask and a gain": lambda c: c.weight * c.mask * torch.sigmoid(c.gain)[:, None, None, None],
}


def net(weight: Callable[[Any], Tensor], **options: Any) -> nn.Module:
    torch.manual_seed(5)
    layers = (Scaled(weight, **options), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), Scaled(weight))
    return prepared(nn.Sequential(*layers), X)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_norm_folds_into_the_tensor_that_is_multiplied(name: str, bias: bool, form: str) -> None:
    model = net(PRODUCTS[name], bias=bias)
    result = fold(model, X, verify=False, form=form)
    assert names(result.report.folded) == ["1", "3"]
    assert error(result.model, model, X) < TOLERANCE
    if form == "module":
        assert torch.equal(result.model[0].mask, model[0].mask)


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_does_in_programs(name: str) -> None:
    model = net(PRODUCTS[name])
    program = torch.export.export(model, (X,))
    result = fold(program, verify=False)
    assert names(result.report.folded) == ["1", "3"]
    assert error(result.model.module(), model, X) < TOLERANCE


def standardised(c: Any) -> Tensor:
    w = c.weight - c.weight.mean((1, 2, 3), keepdim=True)
    return w / w.std((1, 2, 3), keepdim=True)  # type: ignore[no-any-return]


def masked_by_chance(c: Any) -> Tensor:
    return c.weight * torch.bernoulli(c.mask)  # type: ignore[no-any-return]


def changed_on_the_way(c: Any) -> Tensor:
    c.gain.detach().mul_(0.5)
    return c.weight * c.gain.view(-1, 1, 1, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("weight", [standardised, masked_by_chance, changed_on_the_way])
def test_what_is_no_product_with_what_stays_takes_nothing(weight: Callable[[Any], Tensor], form: str) -> None:
    torch.manual_seed(5)
    model = prepared(nn.Sequential(Scaled(weight), nn.BatchNorm2d(4)), X)
    assert not fold(model, X, verify=False, form=form).report.folded


class TwoMasks(nn.Module):
    """One weight under two masks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("masks", (torch.rand(2, 4, 4, 3, 3) > 0.4).double())

    def forward(self, x: Tensor) -> Tensor:
        one, other = (self.conv.weight * mask for mask in (self.masks[0], self.masks[1]))
        return self.norm(F.conv2d(x, one, self.conv.bias)) + F.conv2d(x, other, self.conv.bias)


def test_a_weight_under_two_masks_is_shared() -> None:
    model = prepared(TwoMasks(), X)
    assert "conv" in reason(fold(model, X, verify=False).report)


def test_what_multiplies_one_weight_is_not_changed_by_another_fold() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.a.weight * self.b.weight, self.a.bias)
        return self.norm(self.b(y)) + self.last(y)

    torch.manual_seed(5)
    layers = {name: nn.Conv2d(4, 4, 3) for name in ("a", "b", "last")}
    model = prepared(Block(forward, **layers, norm=nn.BatchNorm2d(4)), X)
    result = fold(model, X, verify=False)
    assert error(result.model, model, X) < TOLERANCE
    assert "b" in reason(result.report)
