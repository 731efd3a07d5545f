"""What cannot be learnt from is one message before anything is trained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bntool.errors import RunError, UsageError
from bntool.study.data import Data, Part
from bntool.study.outline import prepare
from bntool.study.scoring import Loss
from bntool.study.source import source_of


def data(targets: Tensor, *, damaged: int | None = None) -> Data:
    x = torch.randn(len(targets), 6)
    if damaged is not None:
        x[damaged, 2] = math.nan
    cut = len(targets) - len(targets) // 4
    return Data("mine", Part((x[:cut],), targets[:cut]), Part((x[cut:],), targets[cut:]))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (data(torch.randint(3, (80,)), damaged=7), "example 7 of the training part"),
        (data(torch.randint(3, (80,)), damaged=63), "example 3 of the test part"),
        (data(torch.full((80,), math.inf)), "targets of example 0"),
        (data(torch.randint(3, (80, 4, 4))), "4x4 whole numbers"),
        (data(torch.arange(80) % 3 - 1), "negative"),
        (data(torch.zeros(80, dtype=torch.long)), "all targets are the same"),
        (data(torch.arange(80)), "are left"),
    ],
)
def test_data_without_a_question_are_refused(given: Data, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        prepare(source_of(nn.Linear(6, 3)), given, torch.randn(2, 6), None)


def test_a_column_of_classes_is_as_good_as_a_row() -> None:
    setting = prepare(source_of(nn.Linear(6, 3)), data(torch.randint(3, (80, 1))), torch.randn(2, 6), None)
    assert setting.data.train.targets.shape == (60,)


@pytest.mark.parametrize(
    "loss", [lambda output, target: output.nothing, lambda output, target: (output.sum(1) - target).square()]
)
def test_a_loss_that_gives_no_number_is_one_message(loss: Loss) -> None:
    with pytest.raises(RunError, match="cannot judge"):
        prepare(source_of(nn.Linear(6, 3)), data(torch.randint(3, (80,))), torch.randn(2, 6), loss)
