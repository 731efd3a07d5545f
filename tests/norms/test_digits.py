"""On real data: accuracy before inserting, right after, in train mode, and after fine-tuning."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import bntool
from sample_models.lenet import lenet

Split = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
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


@pytest.fixture(scope="module")
def plain(digits: tuple[Split, Split]) -> nn.Module:
    torch.manual_seed(0)
    return trained(lenet(), digits[0], 10, 0.05)


@torch.no_grad()
def accuracy(model: nn.Module, data: Split, *, train_batch: int = 0) -> float:
    """In eval mode, or in train mode with batches of a size, on a copy."""
    model = copy.deepcopy(model).train(bool(train_batch))
    size = train_batch or len(data[0])
    whole = len(data[0]) // size * size
    scores = torch.cat([model(part) for part in data[0][:whole].split(size)])
    return float((scores.argmax(1) == data[1][:whole]).double().mean())


def test_accuracy_stays_in_eval_and_nearly_in_train_mode_and_training_goes_on(
    digits: tuple[Split, Split], plain: nn.Module
) -> None:
    train, test = digits
    data = list(zip(train[0].split(64), train[1].split(64), strict=True))
    result = bntool.insert(plain, train[0][:2], data=data)
    before = accuracy(plain, test)
    assert before > 0.9
    assert accuracy(result.model, test) == before
    assert all(accuracy(result.model, test, train_batch=n) > before - 0.04 for n in (2, 8, 32))
    tuned = trained(copy.deepcopy(result.model), train, 3, 0.01)
    assert accuracy(tuned, test) > before
    folded = bntool.fold(tuned, train[0][:2])
    assert len(folded.report.folded) == 2
    assert accuracy(folded.model, test) == accuracy(tuned, test)


def test_a_fresh_norm_forgets_what_a_preserving_one_keeps(
    digits: tuple[Split, Split], plain: nn.Module
) -> None:
    """In train mode at batch 2, deeper networks lose more; the preserving start is nearer in any case."""
    train, test = digits
    data = list(train[0].split(64))
    kept = bntool.insert(plain, train[0][:2], data=data, layers="all").model
    fresh = bntool.insert(plain, train[0][:2], data=data, layers="all", init="fresh").model
    lost = {name: accuracy(m, test, train_batch=8) for name, m in (("kept", kept), ("fresh", fresh))}
    assert lost["kept"] > lost["fresh"]


def test_calibrating_a_fresh_model_alone_does_not_bring_the_function_back(
    digits: tuple[Split, Split], plain: nn.Module
) -> None:
    """gamma = 1 and right statistics: the scale of every channel is lost."""
    train, _ = digits
    fresh = bntool.insert(plain, train[0][:2], init="fresh", layers="all").model
    calibrated = bntool.calibrate(fresh, [(x,) for x in train[0].split(64)]).model
    with torch.no_grad():
        moved = (calibrated(train[0]) - plain(train[0])).square().mean().sqrt()
        assert moved > 0.2 * plain(train[0]).std()
