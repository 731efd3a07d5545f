"""Tiny networks for timing: one, and the same one that does its work several times."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A few hundred microseconds of convolution; `times` calls of it give the same output as one."""

    def __init__(self, times: int = 1, norm: bool = False) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            y = self.norm(self.conv(x))
        return self.head(torch.relu(y).mean((2, 3)))


def net(times: int = 1, norm: bool = False) -> Net:
    torch.manual_seed(1)
    return Net(times, norm)


class Raises(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("this network never works")


def raises() -> Net:
    return Raises()


class Dies(Net):
    """Ends its whole process, as a crash in native code would, once it has run a few times."""

    def forward(self, x: Tensor) -> Tensor:
        import os
        import signal

        self.times += 1
        if self.times > 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def dies() -> Net:
    return Dies()


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(2, 8, 24, 24),)
