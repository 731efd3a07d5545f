"""LeNet: two convolutions and three linears, no norm. The smallest plain CNN, sized for 8 x 8 digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Convolutions shrink the map by pooling, linears classify it."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(nn.functional.max_pool2d(x, 2)))
        x = self.pool(x).flatten(1)
        x = torch.relu(self.fc1(x))
        return self.fc3(torch.relu(self.fc2(x)))


def lenet(in_channels: int = 1, classes: int = 10) -> LeNet:
    return LeNet(in_channels, classes)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 1, 8, 8),)
