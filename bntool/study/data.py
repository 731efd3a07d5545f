"""Examples in memory: inputs and targets, split once into a training and a test part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bntool.errors import UsageError

CLASSIFICATION, REGRESSION = "classification", "regression"
#: examples that a training and a test part need together
FEWEST = 20


@dataclass(frozen=True)
class Part:
    """Inputs (a tuple, as a model takes them) and targets, one row an example."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Tensor) -> Part:
        return Part(tuple(x[index] for x in self.inputs), self.targets[index])

    def first(self, count: int) -> Part:
        return self.rows(torch.arange(min(count, len(self))))

    def to(self, device: str) -> Part:
        return Part(tuple(x.to(device) for x in self.inputs), self.targets.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in memory. `notes` say what was done to it on the way to the model."""

    name: str
    train: Part
    test: Part
    notes: tuple[str, ...] = field(default=())

    @property
    def task(self) -> str:
        floating = self.train.targets.is_floating_point()
        return REGRESSION if floating else CLASSIFICATION

    @property
    def classes(self) -> int:
        """Number of classes; 0 for regression."""
        if self.task == REGRESSION:
            return 0
        return int(max(self.train.targets.max(), self.test.targets.max())) + 1

    @property
    def chance(self) -> float:
        """Score of knowing nothing: the share of the commonest test class, or an R2 of 0."""
        if self.task == REGRESSION:
            return 0.0
        return float(self.test.targets.flatten().bincount().max()) / self.test.targets.numel()

    def noting(self, *notes: str) -> Data:
        return replace(self, notes=self.notes + notes)

    def fingerprint(self) -> str:
        """Changes when the data do; cheap, so that a resumed study can check it."""
        sums = [float(t.double().sum()) for part in (self.train, self.test) for t in part.inputs]
        return f"{self.name}:{len(self.train)}:{len(self.test)}:{sums}:{int(self.train.targets.sum())}"


def split(name: str, inputs: tuple[Tensor, ...], targets: Tensor, *, test: float = 0.2) -> Data:
    """Shuffle once (always the same way) and keep a fifth for testing.

    Raises: UsageError when there are too few examples to split.
    """
    total = len(targets)
    if total < FEWEST:
        raise UsageError(f"only {total} examples", where=name, next=f"A study needs at least {FEWEST}.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    whole, cut = Part(inputs, targets), total - math.ceil(test * total)
    return Data(name, whole.rows(order[:cut]), whole.rows(order[cut:]))


def standardised(data: Data) -> Data:
    """Shift and scale inputs by one mean and one deviation, taken over the training part."""
    x = data.train.inputs[0]
    mean, std = x.mean(), x.std().clamp_min(1e-6)

    def scaled(part: Part) -> Part:
        return Part(tuple((v - mean) / std for v in part.inputs), part.targets)

    note = "inputs standardised with one mean and deviation of the training part"
    return replace(data, train=scaled(data.train), test=scaled(data.test)).noting(note)


def class_sorted(targets: Tensor) -> Tensor:
    """Row numbers ordered by class (or by target value), stable: what class-sorted batches are cut from."""
    key = targets if targets.dim() == 1 else targets.flatten(1).double().mean(1)
    return torch.argsort(key, stable=True)
