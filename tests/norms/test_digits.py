"""On real data: accuracy before inserting, right after, in train mode, and after fine-tuning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bntool
from sample_models.lenet import lenet
from tests.norms.digits import Split, accuracy, split, trained


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    return split()


@pytest.fixture(scope="module")
def plain(digits: tuple[Split, Split]) -> nn.Module:
    torch.manual_seed(0)
    return trained(lenet(), digits[0], 10, 0.05)


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
