"""Padding with one value per channel: what the zeros behind a norm become in front of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONSTANT_PADS: dict[int, type[nn.Module]] = {
    1: nn.ConstantPad1d,
    2: nn.ConstantPad2d,
    3: nn.ConstantPad3d,
}


class ValuePad(nn.Module):
    """Pads channel c of `x` with `values[c]`: one new tensor, filled and copied into, as F.pad makes it.

    Shapes: `x` (N, C, *sizes), `values` (C,); `widths` are (before, after) for each of the sizes.
    """

    values: Tensor

    def __init__(self, values: Tensor, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        wide = [n + before + after for n, (before, after) in zip(x.shape[2:], self.widths, strict=True)]
        column = self.values.reshape(1, -1, *(1,) * len(wide))
        padded = column.expand(x.shape[0], x.shape[1], *wide).clone(memory_format=torch.contiguous_format)
        inside = [slice(before, before + n) for n, (before, _) in zip(x.shape[2:], self.widths, strict=True)]
        padded[(slice(None), slice(None), *inside)] = x
        return padded

    def extra_repr(self) -> str:
        return f"{len(self.values)} channels, {self.widths}"


def value_pad(values: Tensor, widths: Sequence[tuple[int, int]]) -> nn.Module:
    """The cheapest module that pads so: torch's own where all channels have the same value."""
    if len(values) and bool((values == values[0]).all()):
        flat = [n for before_after in reversed(widths) for n in before_after]
        return CONSTANT_PADS[len(widths)](flat, float(values[0]))
    return ValuePad(values, widths)
