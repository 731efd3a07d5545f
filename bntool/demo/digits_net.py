"""The network of `bntool demo`: a plain CNN for 8 x 8 digits, without any norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(width: int = 16, classes: int = 10) -> nn.Sequential:
    """Four convolutions, then the mean over the image, then one linear. Takes (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)
