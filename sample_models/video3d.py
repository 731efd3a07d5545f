"""R(2+1)D: 3-D convolutions split into a spatial and a temporal one, with norms, in residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_2plus1(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Over height and width, then over time."""
    spatial = nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    temporal = nn.Conv3d(outputs, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
    return [spatial, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True), temporal, nn.BatchNorm3d(outputs)]


class VideoBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*conv_2plus1(inputs, outputs, stride=2))
        self.short = nn.Sequential(
            nn.Conv3d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm3d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.short(x))


class Video3d(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_2plus1(in_channels, width), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(VideoBlock(width, 2 * width), VideoBlock(2 * width, 4 * width))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


def video3d(in_channels: int = 3, classes: int = 10, width: int = 8) -> Video3d:
    return Video3d(in_channels, classes, width)


def example_inputs() -> tuple[Tensor]:
    """Shape: (batch, channels, frames, height, width)."""
    return (torch.randn(2, 3, 4, 16, 16),)
