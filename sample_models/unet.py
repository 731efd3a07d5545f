"""U-Net: transposed convolutions climb back up, skips are concatenated; the output is a map, not a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Doubles height and width."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.down1 = double_conv(in_channels, width)
        self.down2 = double_conv(width, 2 * width)
        self.bottom = double_conv(2 * width, 4 * width)
        self.up2 = up(4 * width, 2 * width)
        self.merge2 = double_conv(4 * width, 2 * width)
        self.up1 = up(2 * width, width)
        self.merge1 = double_conv(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        x = self.bottom(nn.functional.max_pool2d(two, 2))
        x = self.merge2(torch.cat([two, self.up2(x)], 1))
        x = self.merge1(torch.cat([one, self.up1(x)], 1))
        return self.head(x)


def unet(in_channels: int = 3, classes: int = 4, width: int = 8) -> UNet:
    return UNet(in_channels, classes, width)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 3, 32, 32),)
