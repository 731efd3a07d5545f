"""One-dimensional convolutions over a waveform: Conv1d, BatchNorm1d, dilation, average and max pools."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def stage(inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(inplace=True),
    )


class Audio1d(nn.Module):
    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = stage(in_channels, width, 9, 4)
        self.middle = nn.Sequential(nn.MaxPool1d(2), stage(width, 2 * width, 3, 1, dilation=2))
        self.last = nn.Sequential(nn.AvgPool1d(2), stage(2 * width, 4 * width, 3, 1))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.middle(self.stem(x)))
        return self.head(x.mean(-1))


def audio1d(in_channels: int = 1, classes: int = 10, width: int = 16) -> Audio1d:
    return Audio1d(in_channels, classes, width)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 1, 1024),)
