"""DenseNet: layers read the concatenation of all before them: norms meet slices of many convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """conv(relu(norm(conv(relu(norm(cat(earlier)))))))"""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, earlier: list[Tensor]) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(torch.cat(earlier, 1))))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, in_channels: int, classes: int, growth: int, layers: int) -> None:
        super().__init__()
        stem, wide = 2 * growth, 2 * growth + layers * growth
        last = wide // 2 + layers * growth
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        self.block1 = DenseBlock(stem, growth, layers)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, wide // 2, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = DenseBlock(wide // 2, growth, layers)
        self.norm = nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        x = torch.relu(self.norm(x))
        return self.classifier(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def densenet(in_channels: int = 3, classes: int = 10, growth: int = 8, layers: int = 3) -> DenseNet:
    return DenseNet(in_channels, classes, growth, layers)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
