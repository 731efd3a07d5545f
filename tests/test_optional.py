"""Arguments with defaults: a fold is right however the model is called, or the graph takes them no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntool
from tests.random_norms import randomise_norms


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.after = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def choose(self, y: Tensor, given: bool) -> Tensor:
        """One norm behind one layer or behind another one; a second norm is the same either way."""
        y = self.norm(y) if given else torch.relu(self.norm(torch.relu(y)))
        return self.after(self.other(y))


class Maybe(Base):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.choose(y if skip is None else y * 1.0, skip is not None)


class Auxiliary(Base):
    """What is worked out beside is only used where there are labels."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        beside = self.norm(self.conv(x))
        y = self.after(self.other(torch.cat([x, x[:, :1]], 1)))
        return y if labels is None else y + torch.relu(beside) * labels


class Flag(Base):
    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        y = self.conv(x)
        return self.choose(y, True) if flag else self.choose(y, False)


class Mode(Base):
    def forward(self, x: Tensor, mode: str = "a") -> Tensor:
        if mode == "b" and mode != "c":
            return self.choose(self.conv(x), True)
        return self.choose(self.conv(x), mode == "b")


OTHER = {Maybe: torch.ones(()), Flag: True, Mode: "b"}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("other_way", [True, False])
def test_a_module_folds_for_all_ways_it_can_be_called(
    kind: type[nn.Module], with_inputs: bool, other_way: bool
) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = randomise_norms(kind().eval(), (x,))
    arguments: tuple[Any, ...] = (x, OTHER[kind]) if other_way else (x,)
    result = bntool.fold(model, arguments if with_inputs else None, verify=False)
    assert [entry.name for entry in result.report.folded] == ["after"]
    for call in ((x,), (x, OTHER[kind])):
        torch.testing.assert_close(result.model(*call), model(*call), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_graph_has_the_defaults_of_what_is_left_out(kind: type[nn.Module], with_inputs: bool) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = randomise_norms(kind().eval(), (x,))
    folded = bntool.fold(model, (x,) if with_inputs else None, form="graph", verify=False).model
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError):
        folded(x, OTHER[kind])


def test_a_way_on_which_nobody_reads_a_layer_asks_nothing_of_it() -> None:
    x, labels = torch.randn(2, 3, 5, 5, dtype=torch.double), torch.randn(2, 4, 5, 5, dtype=torch.double)
    model = randomise_norms(Auxiliary().eval().double(), (x,))
    result = bntool.fold(model, (x,), verify=False)
    assert sorted(entry.name for entry in result.report.folded) == ["after", "norm"]
    for call in ((x,), (x, labels)):
        torch.testing.assert_close(result.model(*call), model(*call), rtol=1e-10, atol=1e-10)


def test_a_way_that_the_model_itself_does_not_go_is_none() -> None:
    class Needed(Base):
        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            return self.norm(self.conv(x)) + skip.mean()  # type: ignore[union-attr]

    x = torch.randn(2, 3, 5, 5)
    model = randomise_norms(Needed().eval(), (x, x))
    result = bntool.fold(model, (x, x))
    assert [entry.name for entry in result.report.folded] == ["norm"]


def test_norms_are_put_where_the_model_as_it_is_called_has_layers() -> None:
    """With `features` the second convolution is an output layer; nobody asks for them."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None, features: bool = False) -> Tensor:
            y = self.second(torch.relu(self.first(x)))
            y = torch.relu(y if mask is None else y * mask)
            return y if features else self.head(y.mean((2, 3)))

    x, mask = torch.randn(4, 3, 9, 9), torch.rand(4, 4, 5, 5)
    model = Plain().eval()
    result = bntool.insert(model, x)
    assert [site.layer for site in result.report.inserted] == ["first", "second"]
    for call in ((x,), (x, mask), (x, mask, True)):
        torch.testing.assert_close(result.model(*call), model(*call), rtol=1e-4, atol=1e-5)
    folded = bntool.fold(result.model, x)
    assert len(folded.report.folded) == 2
    for call in ((x,), (x, mask), (x, mask, True)):
        torch.testing.assert_close(folded.model(*call), model(*call), rtol=1e-4, atol=1e-5)


class Seven(Base):
    """More arguments that can be left out than any model needs."""

    def forward(
        self,
        x: Tensor,
        a: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        d: Tensor | None = None,
        e: Tensor | None = None,
        f: Tensor | None = None,
        g: Tensor | None = None,
    ) -> Tensor:
        y = self.conv(x)
        for gain in (a, b, c, d, e, f):
            y = y if gain is None else y * gain
        return self.choose(y, given=c is not None and g is not None)


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_module_with_seven_optional_arguments_folds_for_all_ways(with_inputs: bool) -> None:
    x, gain = torch.randn(2, 3, 5, 5), torch.ones(())
    model = randomise_norms(Seven().eval(), (x,))
    result = bntool.fold(model, x if with_inputs else None, verify=False)
    assert [entry.name for entry in result.report.folded] == ["after"]
    for given in ({}, {"c": gain}, {"g": gain}, {"c": gain, "g": gain}):
        torch.testing.assert_close(result.model(x, **given), model(x, **given), rtol=1e-4, atol=1e-5)


def test_too_many_ways_are_said_to_be_what_they_are() -> None:
    class Eight(Seven):
        def forward(  # type: ignore[no-untyped-def,override]
            self, x, a=None, b=None, c=None, d=None, e=None, f=None, g=None, h=None
        ):
            return super().forward(x if h is None else x * h, a, b, c, d, e, f, g)

    (note,) = bntool.fold(Eight().eval(), verify=False).report.notes
    assert note == "the model can go more than 128 ways: its inside is analysed in parts"


def test_a_loop_for_as_long_as_the_data_say_is_not_followed_for_ever() -> None:
    class Loop(Base):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            while x.abs().max() > 1:
                x = self.norm(x) * 0.01
            return x

    x = torch.randn(2, 3, 5, 5)
    report = bntool.fold(randomise_norms(Loop().eval(), (x,)), x, verify=False).report
    assert "norm" in [entry.name for entry in report.kept]
