"""A part that keeps something for its next call is left to itself; code that does not read that folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import TOLERANCE, names, prepared, reason

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SMALL = X[..., :4, :4]


class Convolution(nn.Module):
    """What detectors call so; `m` and `conv` are names that the code around them uses too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Grid(nn.Module):
    """A detector's head: the places of its cells are worked out when the size is another than before."""

    shape: Any = None
    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList([nn.Sequential(Convolution(4), nn.Conv2d(4, 4, 1)) for _ in range(2)])

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        for i in range(2):
            levels[i] = self.towers[i](levels[i])
        shape = levels[0].shape
        if self.shape != shape:
            self.anchors = torch.arange(shape[-1], dtype=levels[0].dtype) + 0.5
            self.shape = shape
        return levels[0] * self.anchors, levels

    def initialise(self) -> None:
        """Nothing that a call runs."""
        whole = self
        for tower in whole.towers:
            tower[-1].bias.data.fill_(0)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Convolution(4), nn.MaxPool2d(2), Convolution(4))
        self.head = Grid()

    def forward(self, x: Tensor) -> Any:
        found = []
        for m in self.model:
            x = m(x)
            found.append(x)
        return self.head([found[0], found[2]])


def agree(one: nn.Module, other: nn.Module, *calls: Tensor) -> None:
    """After one another, since what a call finds may be what another has left."""
    for x in calls:
        for a, b in zip(one(x.clone()), other(x.clone()), strict=True):
            for want, got in zip(
                [a] if isinstance(a, Tensor) else a, [b] if isinstance(b, Tensor) else b, strict=True
            ):
                assert float((want - got).abs().max()) <= TOLERANCE * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_all_of_a_detector_whose_head_keeps_a_grid_folds(form: str) -> None:
    model = prepared(Detector(), X)
    result = fold(model, X, form=form)  # type: ignore[call-overload]
    assert not result.report.kept
    assert len(result.report.folded) == 4
    assert any("head goes another way when it is called again" in note for note in result.report.notes)
    agree(model, result.model, X, SMALL, X[:1])


class Keeps(nn.Module):
    """Counts its calls, in an attribute, a list, a dictionary that others have too, or a buffer."""

    def __init__(self, shared: dict[str, int]) -> None:
        super().__init__()
        self.layer, self.calls, self.list, self.shared = nn.Conv2d(4, 4, 1), 0, [0], shared
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.list.append(self.calls)
        self.shared["calls"] = self.shared.get("calls", 0) + 1
        self.counted = self.counted + 1
        return self.layer(x) * self.calls


class Reads(nn.Module):
    """The norm's input has another reader when a part of the model has been called before."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.shared: dict[str, int] = {}
        self.keeps = Keeps(self.shared if read is READS["dictionary"] else {})
        self.conv, self.norm, self.read = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), read

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        first = self.keeps(x)
        again = self.read(self)
        return first, self.norm(y).tanh(), y if again else first


def shared_with_a_list(model: Any) -> bool:
    model.keeps.list.append(0)
    return len(model.keeps.list) > 3


READS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda model: model.keeps.calls > 1,
    "asked for": lambda model: getattr(model.keeps, "calls", 0) > 1,
    "had": lambda model: hasattr(model.keeps, "calls") and vars(model.keeps)["calls"] > 1,
    "list": lambda model: len(model.keeps.list) > 2,
    "written": shared_with_a_list,
    "dictionary": lambda model: model.shared.get("calls", 0) > 1,
    "buffer": lambda model: bool(model.keeps.counted > 1),
}


@pytest.mark.parametrize("name", READS)
def test_code_that_reads_what_a_part_keeps_is_not_traced(name: str) -> None:
    model = prepared(Reads(READS[name]), X)
    result = fold(model, verify=False)
    agree(model, result.model, X, X)
    assert names(result.report.kept) == ["norm"]


def test_a_part_that_nobody_reads_leaves_the_rest_to_be_folded() -> None:
    model = prepared(Reads(lambda model: False), X)
    result = fold(model, verify=False)
    assert names(result.report.folded) == ["norm"]
    agree(model, result.model, X, X)


def test_reading_is_possible_again_afterwards() -> None:
    model = prepared(Reads(READS["attribute"]), X)
    before = model.keeps.calls
    fold(model, verify=False)
    assert "calls" not in vars(Keeps)
    assert model.keeps.calls == before
    fold(prepared(Detector(), X), X)
    assert Grid.shape is None


class Renames(Detector):
    def forward(self, x: Tensor) -> Any:
        me = self
        float(x.sum())
        return [me.model[0].bn(me.model[0].conv(x)), self.model[0](x)]


def test_code_that_gives_the_module_another_name_may_do_anything_with_its_parts() -> None:
    model = prepared(Renames(), X)
    result = fold(model, X, verify=False)
    assert "model.0.bn" in names(result.report.kept)
    assert "code that cannot be traced" in reason(result.report, "model.0.bn")
