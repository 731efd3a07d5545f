"""LeViT: attention with linear -> flatten -> norm: features become channels only in the flattened view."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearNorm(nn.Module):
    """(N, L, inputs) -> (N, L, outputs): a linear layer, then a norm over all tokens of all samples."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv = LinearNorm(width, 3 * width)
        self.proj = nn.Sequential(nn.Hardswish(), LinearNorm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * self.dim**-0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(LinearNorm(width, 2 * width), nn.Hardswish(), LinearNorm(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class NormLinear(nn.Module):
    """A norm in front of the classifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(inputs)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bn(x))


class LeViT(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.Hardswish(),
            nn.Conv2d(width // 2, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = NormLinear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(x).mean(1))


def levit(in_channels: int = 3, classes: int = 10, width: int = 32, heads: int = 4, depth: int = 2) -> LeViT:
    return LeViT(in_channels, classes, width, heads, depth)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
