"""MobileNetV2: expand 1 x 1, depthwise 3 x 3, project 1 x 1, added back where the shapes allow."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = inputs * expand
        self.add = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_norm(inputs, hidden, 1),
            nn.ReLU6(inplace=True),
            *conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *conv_norm(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_norm(in_channels, 8, 3, 2),
            nn.ReLU6(inplace=True),
            InvertedResidual(8, 16, 2),
            InvertedResidual(16, 16, 1),
            InvertedResidual(16, 24, 2),
            *conv_norm(24, 64, 1),
            nn.ReLU6(inplace=True),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def mobilenet(in_channels: int = 3, classes: int = 10) -> MobileNet:
    return MobileNet(in_channels, classes)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
