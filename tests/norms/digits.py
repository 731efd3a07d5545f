"""scikit-learn's digits, and a small network trained on them: for the tests and for `make insert-zoo`."""

from __future__ import annotations

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

Split = tuple[Tensor, Tensor]


def split() -> tuple[Split, Split]:
    """Images and labels to train on, and to test on."""
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], torch.tensor(found.target)[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def trained(model: nn.Module, data: Split, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Split, *, train_batch: int = 0) -> float:
    """In eval mode, or in train mode with batches of a size, on a copy."""
    model = copy.deepcopy(model).train(bool(train_batch))
    size = train_batch or len(data[0])
    whole = len(data[0]) // size * size
    scores = torch.cat([model(part) for part in data[0][:whole].split(size)])
    return float((scores.argmax(1) == data[1][:whole]).double().mean())
