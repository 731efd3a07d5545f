"""Norms of one dimension where the example says nothing of sizes: behind what an optional argument does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bntool.fold import fold
from tests.folding import TOLERANCE, error, names, prepared, reason

X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
LENGTHS = torch.tensor([3, 5])


def mask(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.shape[-1])[None] >= lengths[:, None]


def filled(x: Tensor, lengths: Tensor) -> Tensor:
    return F.glu(torch.cat([x, x], 1).masked_fill(mask(x, lengths).unsqueeze(1), 0.0), 1)


def averaged(x: Tensor, lengths: Tensor) -> Tensor:
    kept = (~mask(x, lengths)).unsqueeze(1).to(x.dtype)
    mean = (x * kept).sum(2, keepdim=True) / kept.sum(2, keepdim=True)
    return torch.sigmoid(mean) * x


def scaled(x: Tensor, lengths: Tensor) -> Tensor:
    x = x * 1
    x *= lengths[:, None, None] / 2
    return torch.cat([x, x], 2).transpose(1, 2).contiguous().transpose(1, 2)


class Speech(nn.Module):
    """A convolution over time and its norm, behind what is done with the lengths, if there are any."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use, self.conv, self.norm = use, nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = x.transpose(1, 2)
        if lengths is not None:
            x = self.use(x, lengths)
        return torch.tanh(self.norm(self.conv(x)))


@pytest.mark.parametrize("use", [filled, averaged, scaled])
def test_the_number_of_dimensions_is_worked_out(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = prepared(Speech(use), X)
    result = fold(model, X)
    assert names(result.report.folded) == ["norm"]
    assert error(model, result.model, X) <= TOLERANCE
    assert error(model, result.model, X, LENGTHS) <= TOLERANCE


def one_of_them(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.einsum("bct,b->ct", x, lengths.to(x.dtype))[:, :4]


def spread(x: Tensor, lengths: Tensor) -> Tensor:
    return (x.sum((0, 2)) ** lengths[:, None, None]).mean(0)[:, :4].T.expand(4, 4)


@pytest.mark.parametrize("use", [one_of_them, spread])
def test_a_norm_of_images_without_a_batch_stays(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The norm's channels are then the times of the convolution."""
    model: Any = prepared(Speech(use), X)
    result = fold(model, X, verify=False)
    assert error(model, result.model, X, LENGTHS) <= TOLERANCE
    assert names(result.report.kept) == ["norm"]
    assert "sizes are not known" in reason(result.report)
