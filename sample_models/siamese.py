"""Siamese: one tower reads both images, so every convolution and norm in it is called twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Siamese(nn.Module):
    """Returns the tower's two embeddings' similarity class: same, related or different."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 32, bias=False),
            nn.BatchNorm1d(32),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.tower(left), self.tower(right)
        return self.head(torch.cat([(a - b).abs(), a * b], 1))


def siamese(in_channels: int = 3, classes: int = 3, width: int = 16) -> Siamese:
    return Siamese(in_channels, classes, width)


def example_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
