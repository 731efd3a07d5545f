"""The reference workload: a small network that never changes, timed beside a model on every machine.

A stored ratio to it survives a faster or slower runner; a stored time does not. Changing this network makes
every stored baseline worthless: raise VERSION when it must be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VERSION = 1


def workload() -> nn.Module:
    """Convolutions, a depthwise one, a linear layer: a few milliseconds on one core."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 256),
    )


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(1, 3, 96, 96),)
