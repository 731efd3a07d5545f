"""RepVGG: 3 x 3, 1 x 1 and identity branches with a norm each, summed; all of them make one convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepBlock(nn.Module):
    """relu(norm(conv3(x)) + norm(conv1(x)) + norm(x)), the last one where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        keeps_shape = inputs == outputs and stride == 1
        self.norm0 = nn.BatchNorm2d(inputs) if keeps_shape else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm3(self.conv3(x)) + self.norm1(self.conv1(x))
        if self.norm0 is not None:
            out = out + self.norm0(x)
        return torch.relu(out)


class RepVGG(nn.Module):
    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width in widths:
            blocks += [RepBlock(in_channels, width, 2), RepBlock(width, width, 1)]
            in_channels = width
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(x)).flatten(1))


def repvgg(in_channels: int = 3, classes: int = 10, widths: tuple[int, ...] = (16, 32, 48)) -> RepVGG:
    return RepVGG(in_channels, classes, widths)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
