"""Pre-activation ResNet: norm -> relu -> conv. Norms after a sum that others read cannot be folded."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """conv(relu(norm(conv(relu(norm(x)))))) + shortcut"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(torch.relu(self.bn2(out))) + short


class PreActResNet(nn.Module):
    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        sources = (widths[0], *widths[:-1])
        self.blocks = nn.Sequential(
            *(PreActBlock(a, b, 1 if a == b else 2) for a, b in zip(sources, widths, strict=True))
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = self.pool(torch.relu(self.norm(x))).flatten(1)
        return self.fc(x)


def preact_resnet(
    in_channels: int = 3, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)
) -> PreActResNet:
    return PreActResNet(in_channels, classes, widths)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
