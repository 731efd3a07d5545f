"""Do two models compute the same thing? What cannot be compared is different, never equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.bench.equality import Answer, compare_outputs

ONE, TWO = np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]])


def answer(*arrays: np.ndarray, **options: object) -> Answer:
    names = tuple(str(i) for i in range(len(arrays)))
    return Answer(**{"names": names, "arrays": arrays, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("baseline", "other", "reason"),
    [
        (answer(ONE), answer(ONE), ""),
        (answer(ONE), answer(TWO), "outputs differ by 0.25"),
        (answer(ONE), answer(ONE[0]), "of shapes"),
        (answer(ONE), answer(ONE, TWO), "of shapes"),
        (answer(ONE), answer(ONE * np.nan), "inf or NaN where"),
        # a baseline that says nothing must not switch the check off
        (answer(ONE * np.nan), answer(ONE * np.nan), "hold NaN"),
        (answer(ONE * np.inf), answer(ONE * np.inf), "all infinite"),
        (answer(), answer(), "gives none"),
        (answer(ONE), answer(why="an output is a Cache"), "an output is a Cache"),
        # masked scores are meant to be -inf in places
        (answer(np.array([1.0, -np.inf])), answer(np.array([1.0, -np.inf])), ""),
        (answer(ONE, repeats=False), answer(TWO), "change from call to call"),
    ],
)
def test_outputs(baseline: Answer, other: Answer, reason: str) -> None:
    found = compare_outputs(baseline, other, 1e-6)
    assert found.equal == (reason == "")
    assert reason in found.reason


def test_the_members_of_a_dict_may_come_in_another_order() -> None:
    first, second = Answer(("a", "b"), (ONE, TWO)), Answer(("b", "a"), (TWO, ONE))
    assert compare_outputs(first, second, 1e-6).equal
    assert not compare_outputs(first, Answer(("b", "a"), (ONE, TWO)), 1e-6).equal
    # a file's outputs have names of its own: there the order counts
    assert compare_outputs(first, Answer(("output_0", "output_1"), (ONE, TWO)), 1e-6).equal


@dataclass
class Scores:
    logits: Tensor


class Opaque:
    """Holds tensors where nobody can find them."""


class Head(nn.Module):
    """A linear layer whose output is wrapped in one way or another."""

    def __init__(self, wrap: str, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.wrap, self.scale = nn.Linear(4, 3), wrap, scale

    def forward(self, x: Tensor) -> object:
        y = self.linear(x) * self.scale
        if self.wrap == "random":
            return y + torch.randn(3)
        return {"dataclass": Scores(y), "dict": {"y": y, "z": 2 * y}, "opaque": Opaque()}[self.wrap]


@pytest.mark.parametrize(
    ("wrap", "scale", "reason"),
    [
        ("dataclass", 1.0, ""),
        ("dataclass", 3.0, "outputs differ by 2"),
        ("dict", 3.0, "outputs differ by 2"),
        ("opaque", 1.0, "Opaque"),
        ("random", 1.0, ""),  # the same numbers are drawn for both
        ("random", 3.0, "change from call to call"),
    ],
)
def test_what_models_give_back(wrap: str, scale: float, reason: str) -> None:
    inputs = (torch.randn(2, 4),)
    models = [Stranded(wrap), Stranded(wrap, scale)]
    (pair,) = bntool.bench(models, inputs, budget_s=0.05).comparisons
    assert pair.outputs is not None
    assert pair.outputs.equal == (reason == "")
    assert reason in pair.warning


class Stranded(Head):
    """Cannot be pickled, so that no process has to be started for it."""

    def __init__(self, wrap: str, scale: float = 1.0) -> None:
        super().__init__(wrap, scale)
        self.secret = lambda x: x
