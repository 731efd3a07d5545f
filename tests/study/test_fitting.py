"""Data and model are made to fit, said so, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bntool.errors import RunError, UsageError
from bntool.study.datasets import load_data
from bntool.study.fitting import fit_inputs, fit_targets, readout, reshape
from bntool.study.outline import prepare
from bntool.study.source import source_of


@pytest.mark.parametrize("shape", [(64,), (100,), (1, 8, 8), (3, 16, 12), (2, 50), (3, 4, 8, 8)])
def test_digits_take_any_shape_a_model_may_want(shape: tuple[int, ...]) -> None:
    images = load_data("digits").train.inputs[0][:5]
    found = reshape(images, shape, "digits")
    assert found.shape == (5, *shape)
    assert len(found.unique(dim=0)) == 5


def test_flattening_keeps_every_value() -> None:
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(reshape(images, (64,), ""), images.flatten(1))


def test_two_inputs_become_pairs_with_a_question() -> None:
    wanted = (torch.zeros(2, 1, 8, 8),) * 2
    data = fit_inputs(load_data("digits"), wanted)
    assert len(data.train.inputs) == 2
    assert data.classes == 2
    assert 0.4 < data.train.targets.float().mean() < 0.6
    assert any("pairs" in n for n in data.notes)


def test_a_model_of_token_ids_is_refused() -> None:
    with pytest.raises(UsageError, match="indices"):
        fit_inputs(load_data("digits"), (torch.zeros(2, 7, dtype=torch.int64),))


def test_fewer_outputs_than_classes_leave_classes_out() -> None:
    data = fit_targets(load_data("digits"), torch.zeros(4, 3))
    assert data.classes == 3
    assert any("classes 0 to 2" in n for n in data.notes)


def test_one_output_makes_it_regression() -> None:
    data = fit_targets(load_data("digits"), torch.zeros(4, 1))
    assert data.task == "regression"
    assert data.train.targets.shape[1:] == (1,)


def test_a_regression_of_the_wrong_width_is_refused() -> None:
    x = torch.randn(40, 3)
    with pytest.raises(UsageError, match="gives 2 numbers, a target has 3"):
        fit_targets(load_data((x, x)), torch.zeros(4, 2))


def test_the_first_tensor_of_an_output_is_read_and_maps_averaged() -> None:
    maps = torch.randn(2, 4, 3, 3)
    assert torch.allclose(readout({"logits": maps, "more": 1}), maps.mean((2, 3)))
    assert torch.equal(readout((torch.ones(2, 5), None)), torch.ones(2, 5))


def test_a_model_that_cannot_take_the_data_says_which_shape_it_got() -> None:
    with pytest.raises(RunError, match="4x1x8x8"):
        prepare(source_of(lambda: nn.Linear(7, 2)), "digits", None, None)
