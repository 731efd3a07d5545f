"""What is remembered of an op is what it makes of such arguments, and nobody else's to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bntool.graphs.fx_remembered import remembered

X = torch.empty(2, 3, dtype=torch.int64, device="meta")


def run(target: Any, *args: Any, **kwargs: Any) -> Any:
    return remembered(target, args, kwargs, lambda: target(*args, **kwargs))


def test_numbers_that_are_equal_but_not_the_same_make_other_types() -> None:
    made = [run(torch.add, X, number).dtype for number in (1, 1.0, True, 1)]
    assert made == [torch.int64, torch.float32, torch.int64, torch.int64]


def test_it_is_worked_out_once_and_given_to_each_anew() -> None:
    calls: list[Tensor] = []

    def transpose(x: Tensor) -> Tensor:
        calls.append(x)
        return x.T

    first, second = (remembered("T", (x,), {}, lambda x=x: transpose(x)) for x in (X, X.clone()))
    first.unsqueeze_(0)
    assert len(calls) == 1
    assert first.shape == (1, 3, 2)
    assert second.shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_type_counts(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert run(torch.true_divide, X, 2).dtype == dtype
    finally:
        torch.set_default_dtype(before)


def test_functions_of_others_are_run_each_time() -> None:
    sizes = iter([2, 3])

    def grown(x: Tensor) -> Tensor:
        return x.expand(next(sizes), *x.shape)

    assert [run(grown, X).shape[0] for _ in range(2)] == [2, 3]


def test_what_changes_its_argument_is_run_each_time() -> None:
    first, second = X.clone(), X.clone()
    for x in (first, second):
        remembered("squeeze_", (x.unsqueeze_(0),), {}, lambda x=x: x.squeeze_(0))
        assert x.shape == (2, 3)


@pytest.mark.parametrize("target", [torch.Tensor.add, torch.Tensor.add_, torch.ops.aten.add_.Tensor])
def test_methods_and_operators_by_any_name_are_run(target: Any) -> None:
    assert run(target, X.clone(), X).shape == (2, 3)
