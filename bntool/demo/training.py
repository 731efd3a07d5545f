"""Digits and a few seconds of training: what the tour does around bntool itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bntool.errors import LoadError
from bntool.progress import Progress, silent

BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Shapes: images (N, 1, 8, 8), labels (N,)."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self) -> list[Tensor]:
        """The training images, in order."""
        return list(self.images.split(BATCH))


def digits() -> Digits:
    """scikit-learn's 1797 handwritten digits, a fifth of them for testing. Raises: LoadError without it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise LoadError("the demo needs scikit-learn", next="pip install 'bntool[study]'") from problem
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return Digits(images[train], labels[train], images[test], labels[test])


def train(
    model: nn.Module,
    data: Digits,
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    what: str = "train",
    progress: Progress = silent,
) -> None:
    """SGD with momentum on the cross entropy; in place, and in eval mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for epoch in range(epochs):
        progress(what, epoch, epochs)
        for rows in torch.randperm(len(data.images), generator=generator).split(BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(data.images[rows]), data.labels[rows])
            loss.backward()
            optimiser.step()
    progress(what, epochs, epochs)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of test digits that are recognised, in eval mode."""
    model.eval()
    return float((model(data.test_images).argmax(1) == data.test_labels).double().mean())
