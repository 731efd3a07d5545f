"""A few quick rows of the zoo, and proof that the harness notices a wrong fold. All rows: `make zoo`."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.__main__ import rows
from tests.zoo.check import Row, bntool_fold, check

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")),
    reason="timm and torchvision are not installed",
)
QUICK = ("resnet18", "mobilenet_v2", "levit_128s", "shufflenet_v2_x1_0", "test_byobnet", "test_coatnet")


def row(name: str) -> Row:
    (found,) = rows([name])
    return found


@pytest.mark.parametrize("name", QUICK)
def test_every_foldable_norm_of_a_real_model_folds(name: str) -> None:
    outcome = check(row(name), bntool_fold)
    assert outcome.passed, outcome


def unchanged(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return copy.deepcopy(model)


def damaged(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """One weight of one channel, 1 % off."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter("layer2.0.conv1.weight")[0].mul_(1.01)
    return model


def another_class(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return nn.Sequential(model)


def test_the_check_counts_the_norms_left() -> None:
    outcome = check(row("resnet18"), unchanged)
    assert (outcome.before, outcome.after, outcome.allowed) == (20, 20, 0)
    assert outcome.exact
    assert not outcome.passed


def test_the_check_notices_a_weight_one_percent_off() -> None:
    outcome = check(row("resnet18"), damaged)
    assert not outcome.exact


def test_the_check_notices_a_lost_class() -> None:
    assert not check(row("resnet18"), another_class).class_kept


def test_rows_read_back_as_the_lines_they_came_from() -> None:
    assert sum(r.norm_calls for r in rows()) == 7283
    assert sum(r.foldable for r in rows()) == 6810
    assert all(Row.parse(r.line) == r for r in rows())
