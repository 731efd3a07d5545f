"""Small networks and data for the tests of insert, calibrate and replace."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode with random norms: under the defaults a wrong statistic would not show."""
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, _BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2.0)
        if isinstance(m, _BatchNorm) and m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return model.eval()


class Chain(nn.Module):
    """norm -> relu -> conv -> norm: the second norm's input depends on the first one's statistics."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.second = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(torch.relu(self.first(x))))


class Two(nn.Module):
    """Two convolutions that take norms, and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(x)))))


def seeded_chain() -> nn.Module:
    """The same Chain in every process."""
    torch.manual_seed(7)
    return randomized(Chain())


def shifted_batches(sizes: tuple[int, ...] = (7, 5, 2), channels: int = 4, seed: int = 1) -> list[Tensor]:
    """Ragged batches whose means differ: averaging batch variances loses what lies between them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((n, channels, 6, 6), generator=generator) * (1 + i) + 3.0 * i for i, n in enumerate(sizes)
    ]
