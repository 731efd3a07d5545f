"""Control flow that torch.fx cannot trace: the path depends on the data, and the result is a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Branchy(nn.Module):
    """Bright images take the short path, dark ones the long one, refined while the signal is weak."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, width, 2)
        self.short = ConvNorm(width, 2 * width, 2)
        self.long = nn.Sequential(ConvNorm(width, width), ConvNorm(width, 2 * width, 2))
        self.refine = ConvNorm(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        features = self.short(features) if x.mean() > 0 else self.long(features)
        steps = 0
        while steps < 2 and features.abs().mean() < 1:
            features = self.refine(features)
            steps += 1
        return {"logits": self.head(features.mean((2, 3))), "features": features}


def branchy(in_channels: int = 3, classes: int = 10, width: int = 16) -> Branchy:
    return Branchy(in_channels, classes, width)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
