"""What forwards do with sizes besides giving them to torch: Python's and numpy's arithmetic, look-ups."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bntool.fold import fold
from tests.folding import TOLERANCE, Block, ConvNorm, error, folded, names, prepared, reason

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@lru_cache
def places(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64)


def pieces(y: Tensor) -> Tensor:
    quotient, rest = divmod(y.shape[2], 4)
    return y[:, :, quotient:, rest:]


FORWARDS: dict[str, Callable[[Tensor], Any]] = {
    "the size of a window": lambda y: F.avg_pool2d(y, y.size()[2:]),
    "rounded": lambda y: F.max_pool2d(y, round(y.shape[2] / 4)),
    "rounded to digits": lambda y: y * round(y.shape[2] / 7, 2),
    "divided with a rest": pieces,
    "divided by": lambda y: y * divmod(100, y.shape[2])[1],
    "looked up": lambda y: F.avg_pool2d(y, {6: 2, 8: 4}[int(y.shape[2])]),
    "remembered": lambda y: y * places(y.shape[2]),
    "numpy's product": lambda y: y.view(-1, np.prod(y.size()[1:])),
    "numpy's product as an int": lambda y: y.view(-1, int(np.prod(y.shape[1:]))),
    "numpy's root": lambda y: y / np.sqrt(y.size(-1)),
    "numpy's logarithm": lambda y: y[:, : int(np.log2(y.shape[2]))],
    "numpy's greatest": lambda y: F.avg_pool2d(y, int(np.max(y.shape[2:]))),
    "numpy's array": lambda y: F.interpolate(y, size=tuple(np.array(y.shape[2:]) * 2)),
    "numpy's integer": lambda y: y[:, :, : np.int64(y.shape[2]) // 2],
    "added to numpy's": lambda y: F.avg_pool2d(y, int(np.int64(2) + y.shape[2] - 6)),
    "numpy's in front": lambda y: np.sqrt(2.0) * y,
    "numpy's behind": lambda y: y * np.float32(2.0),
    "taken from numpy's": lambda y: np.float64(1.0) - y,
    "divided into numpy's": lambda y: np.float32(1.0) / (3 + y.abs()),
    "power of numpy's": lambda y: np.float64(2.0) ** y,
    "tensor of sizes": lambda y: y * torch.tensor(y.shape[2:]).prod(),
    "tensor of a size": lambda y: y / torch.tensor(y.shape[-1]),
    "as a tensor": lambda y: y / torch.as_tensor(y.shape[-1], dtype=torch.float64),
    "sizes one by one": lambda y: y + torch.ones(*y.shape[1:]),
    "limits of its type": lambda y: y + torch.finfo(y.dtype).eps * 1e15,
    "smallest of its type": lambda y: y.masked_fill(y > 1, torch.finfo(y.dtype).min).clamp(-2, 2),
}


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", FORWARDS)
def test_the_norm_folds(name: str, form: str) -> None:
    layers = ConvNorm()

    def forward(self: Any, x: Tensor) -> Any:
        return FORWARDS[name](self.norm(self.conv(x)))

    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, X, form=form)  # type: ignore[call-overload]
    assert len(result.report.folded) == 1
    assert not result.report.kept
    assert error(model, result.model, X) <= TOLERANCE
    assert error(model, result.model, X[:1]) <= TOLERANCE


def by_rounding(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.norm(y) if round(x.shape[0] / 4) else self.norm(y) + y


def by_numpy(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.norm(y) + y if np.floor(x.shape[0] / 4) else self.norm(y)


def by_tensor(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.norm(y) + y if torch.tensor(x.shape).max() > 30 else self.norm(y)


@pytest.mark.parametrize("forward", [by_rounding, by_numpy, by_tensor])
def test_another_batch_may_go_another_way(forward: Callable[[Any, Tensor], Tensor]) -> None:
    layers = ConvNorm()
    model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
    result = fold(model, X, verify=False)
    assert names(result.report.kept) == ["norm"]
    for batch in (X, X[:1], torch.cat([X, X]), X[:1].repeat(40, 1, 1, 1)):
        assert error(model, result.model, batch) <= TOLERANCE


@pytest.mark.parametrize(
    "function", [lambda y: y * float(np.asarray(y).mean()), lambda y: torch.as_tensor(np.tanh(y))]
)
def test_data_that_goes_to_numpy_is_not_followed(function: Callable[[Tensor], Tensor]) -> None:
    layers = ConvNorm()

    def forward(self: Any, x: Tensor) -> Any:
        return function(self.norm(self.conv(x)))

    with torch.no_grad():
        model = prepared(Block(forward, conv=layers.conv, norm=layers.norm), X)
        result = fold(model, X, verify=False)
    assert "code that cannot be traced" in reason(result.report)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_the_batch_as_a_factor_is_no_constant(form: str) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "head": nn.Conv2d(4, 2, 1)}
    model = Block(lambda m, x: m.head(m.norm(m.conv(x).relu()) * x.shape[0]), **layers)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert not folded(model, x, form=form)[1].folded


def test_a_list_as_long_as_a_value_has_dimensions_is_written_into() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        shape = [1] * x.dim()
        shape[0] = -1
        places = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).view(shape).transpose(0, 1)
        return self.norm(x) * places.sum()  # type: ignore[no-any-return]

    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    _, report = folded(Block(forward, **layers), torch.randn(2, 4, 5, 5, dtype=torch.float64))
    assert not report.kept


def test_a_number_of_numpys_made_of_a_size_that_is_not_known_is_not_to_be_caught() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        rows = y[y[:, 0, 0, 0] > -1e9].shape[0]  # how many there are depends on data
        try:
            return self.norm(y) + int(np.ceil(rows / 1000)) * y  # type: ignore[no-any-return]
        except ValueError:
            return self.norm(y)  # type: ignore[no-any-return]

    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    folded(Block(forward, **layers), torch.randn(2, 4, 5, 5, dtype=torch.float64))


def reshaped(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.unsqueeze_(0)
    return self.norm(y[0] if y.dim() == 5 else y.relu())


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_tensor_that_is_given_another_shape_in_place_has_it_from_there_on(form: str) -> None:
    model = prepared(Block(reshaped, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)), X)
    assert error(fold(model, X, verify=False, form=form).model, model, X) < TOLERANCE
