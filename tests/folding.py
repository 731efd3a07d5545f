"""What every test of fold shares: random statistics, float64, outputs compared on two batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bntool.fold import fold
from bntool.result import FoldReport
from tests.random_norms import randomise_norms

#: float64 rounding through a handful of layers, relative to the largest output
TOLERANCE = 1e-11


class ConvNorm(nn.Module):
    """A convolution and a norm; what is done with them is the subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)


class Block(nn.Module):
    """Layers by name, and a forward as a function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def prepared(model: nn.Module, *inputs: Tensor, seed: int = 0) -> nn.Module:
    """In eval mode and float64, with random norm statistics."""
    return randomise_norms(model.eval().double(), inputs, seed)


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [v for v in tree_leaves(model(*[x.clone() for x in inputs])) if isinstance(v, Tensor)]


def error(a: nn.Module, b: nn.Module, *inputs: Tensor) -> float:
    """The largest difference of any output over its largest value."""
    pairs = zip(outputs(a, *inputs), outputs(b, *inputs), strict=True)
    return max(float((p - q).abs().max() / p.abs().max().clamp_min(1e-30)) for p, q in pairs)


def folded(
    model: nn.Module, *inputs: Tensor, prepare: bool = True, **options: Any
) -> tuple[nn.Module, FoldReport]:
    """Fold `model` (prepared first) and insist that it computes the same, also with one item more."""
    torch.manual_seed(1)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    model = prepared(model, *inputs) if prepare else model
    result = fold(model, inputs, verify=False, **options)
    assert error(model, result.model, *inputs) < TOLERANCE
    larger = tuple(torch.cat([x, x[:1] * 2 if x.is_floating_point() else x[:1]]) for x in inputs)
    assert error(model, result.model, *larger) < TOLERANCE
    return result.model, result.report


def names(entries: list[Any]) -> list[str]:
    return [e.name for e in entries]


def reason(report: FoldReport, name: str = "") -> str:
    """Why the norm `name` (or the only one) stayed."""
    entries = [e for e in report.kept if not name or e.name == name]
    assert len(entries) == 1, report
    return str(entries[0].reason)
