"""Sizes within parts of models that cannot be traced whole: from one run on the example inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bntool.fold import fold, fold_
from tests.folding import ConvNorm, error, folded, names, prepared, reason

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Part(nn.Module):
    """What folds here depends on sizes: a norm of rank 2, behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pool(x)).flatten(1)).tanh()


class Routed(nn.Module):
    """Control flow on data's values, given as a number: nothing that fx can follow."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second = parts[0], parts[-1]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1)
        if float(x.abs().max()) < 100:
            return {"first": self.first(x), "again": self.first(x[:1])}
        return {"second": self.second(x)}


def routed(*parts: nn.Module) -> nn.Module:
    return prepared(Routed(*parts), X)


def test_an_island_is_analysed_with_the_sizes_it_is_called_with() -> None:
    _, report = folded(routed(Part()), X, prepare=False)
    assert names(report.folded) == ["first.norm"]


def test_without_inputs_it_asks_for_them() -> None:
    report = fold(routed(Part())).report
    assert "give example inputs" in reason(report)


def test_an_island_that_the_inputs_do_not_reach_says_so() -> None:
    report = fold(routed(Part(), Part()), X).report
    assert names(report.folded) == ["first.norm"]
    assert "no call of it is reached with the example inputs" in reason(report, "second.norm")


def test_what_leaves_an_island_is_said_to_be_its_output() -> None:
    report = fold(routed(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))), X).report
    assert "first.2 is an output of first" in reason(report)


class Levels(Routed):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        step = 2 if float(x.abs().max()) < 100 else 3
        return {"whole": self.first(x), "part": self.first(x[..., ::step])}


def test_an_island_that_is_called_with_several_sizes_says_so() -> None:
    report = fold(prepared(Levels(Part()), X), X).report
    assert "inputs of several sizes" in reason(report)


class Raises(Routed):
    def forward(self, x: Tensor) -> Any:
        raise ValueError(f"{float(x.sum())}")


def test_a_model_that_raises_says_so() -> None:
    model = Raises(Part())
    assert "the model raises ValueError" in reason(fold(model.eval(), X, verify=False).report)


class Forked(ConvNorm):
    """Sizes that another caller may give take another way, on which the conv feeds the norm no more."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[-1] > 4:
            return self.norm(y).tanh()
        return self.norm(y.tanh())


def test_sizes_of_one_run_decide_no_fork_within_an_island() -> None:
    model = routed(Forked())
    result, report = folded(model, X, prepare=False)
    assert names(report.kept) == ["first.norm"]
    assert error(model.first, result.first, X[..., :4]) < 1e-12


@pytest.mark.parametrize("in_place", [False, True])
def test_the_run_leaves_no_trace(in_place: bool) -> None:
    model, x = routed(Part()).train(), X.clone()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = fold_(model, x) if in_place else fold(model, x, verify=False)
    assert model.training
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_pre_hooks_with_kwargs for m in model.modules())
    assert "in train mode" in reason(result.report)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, X)


class ByWord(nn.Module):
    """Keeps state, which is not followed, and reads layers by names that are written there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.many = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
        self.calls: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "body")(x) if getattr(self, "extra", None) is None else x  # noqa: B009
        for block in getattr(self, "many"):  # noqa: B009
            x = block(x)
        self.calls = x.mean() if self.calls is None else self.calls + x.mean()
        return x * self.calls.sign()


class ByAnyWord(ByWord):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for name in ("body",):
            y = y + getattr(self, name)[0].weight.sum()
        return y


def test_getattr_with_a_name_that_is_written_there_is_an_attribute() -> None:
    model, other = prepared(ByWord(), X), prepared(ByAnyWord(), X)
    model.calls = other.calls = None
    assert not fold(model, (X,)).report.kept
    assert len(fold(other, (X,)).report.kept) == 3


class Loose(nn.Module):
    """Untraceable code that takes lists of layers apart."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        x = x + float(x.detach().numpy().sum()) * 0
        for block in self.blocks:
            x = block(x) if self.whole else block[1](block[0](x).sigmoid())
        return x


@pytest.mark.parametrize("whole", [True, False])
def test_lists_of_layers_that_are_taken_apart_are_left_alone(whole: bool) -> None:
    model = prepared(Loose(whole), X)
    result = fold(model, (X,), verify=False)
    assert len(result.report.folded) == (2 if whole else 0)
    assert error(model, result.model, X) < 1e-11


class Collected(nn.Module):
    """Hooks collect what its parts give, and no trace calls those."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(4, 4, 1), Gathering()

    def __init_subclass__(cls) -> None:
        cls.tags = list(cls.__dict__)

    def float(self) -> Any:
        return self.apply(lambda module: module)

    def forward(self, x: Tensor) -> Tensor:
        found = list[Tensor]()
        handle = register_module_forward_hook(
            lambda module, _, output: found.append(output) if isinstance(output, Tensor) else None
        )
        try:
            self.body(x)
        finally:
            handle.remove()
        return self.head(tuple(found)).float()


class Gathering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)

    def forward(self, found: tuple[Tensor, ...], **unused: Any) -> Tensor:
        return self.norm(self.conv(found[-1] + len(found))).tanh()


def test_what_fails_only_for_what_a_trace_gives_it_is_an_island() -> None:
    model = prepared(Collected(), X)
    result = fold(model, X)
    assert names(result.report.folded) == ["head.norm"]
    assert torch.allclose(result.model(X), model(X), rtol=0, atol=1e-6)
