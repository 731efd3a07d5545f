"""Multi-layer perceptron of any depth and activation, no norm by default: the network the study varies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def hidden_layers(depth: int, width: int, activation: str, norm: bool, inputs: int) -> Iterator[nn.Module]:
    for source in [inputs] + [width] * (depth - 1):
        yield nn.Linear(source, width)
        if norm:
            yield nn.BatchNorm1d(width)
        yield ACTIVATIONS[activation]()


def mlp(
    depth: int = 3,
    activation: str = "relu",
    width: int = 100,
    norm: bool = False,
    inputs: int = 64,
    classes: int = 10,
) -> nn.Sequential:
    """`depth` hidden layers of `width` units. Takes (N, 64) or an image of 64 values, (N, 1, 8, 8)."""
    hidden = hidden_layers(depth, width, activation, norm, inputs)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(4, 64),)
