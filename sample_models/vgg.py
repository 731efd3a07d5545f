"""VGG: convolutions, activations and pools in one Sequential, no norm: inserting shifts its indices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def features(in_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Two 3 x 3 convolutions a stage, each stage ended by a pool."""
    layers: list[nn.Module] = []
    for width in widths:
        for source in (in_channels, width):
            layers += [nn.Conv2d(source, width, 3, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
        in_channels = width
    return nn.Sequential(*layers)


class VGG(nn.Module):
    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.features = features(in_channels, widths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(widths[-1], 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg(in_channels: int = 3, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)) -> VGG:
    return VGG(in_channels, classes, widths)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
