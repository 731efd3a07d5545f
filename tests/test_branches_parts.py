"""Merging in models that cannot be traced whole: their parts become graphs, and the code around them may ask
what they are.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bntool.fold import fold
from tests.folding import error, folded, prepared

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Branches(nn.Module):
    """3 x 3, 1 x 1 and identity, which become one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.source = nn.BatchNorm2d(4), -1

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x) + self.norm(x)).tanh()


class Around(nn.Module):
    """Code that cannot be traced around three parts."""

    def __init__(self, part: type[nn.Module] = Branches) -> None:
        super().__init__()
        self.first, self.rest = part(), nn.ModuleList([part(), part()])

    def step(self, part: Any, x: Tensor) -> Tensor:
        return x if part is None else part(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * len({str(float(x.sum())): 1})
        for part in self.rest:
            x = self.step(part, x)
        return x


def convs(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in model.modules())


def test_parts_in_lists_become_one_layer_each() -> None:
    result, report = folded(Around(), X, form="graph", merge=True)
    assert type(result) is Around
    assert (convs(result), report.kept) == (3, [])
    assert [layer.name for layer in report.merged] == ["first.merged", "rest.0.merged", "rest.1.merged"]


class Twice(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return part(part(x))  # type: ignore[no-any-return]


class Reading(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return part(x) * part.source  # type: ignore[no-any-return]


@pytest.mark.parametrize("around", [Twice, Reading])
def test_a_part_may_be_called_again_and_read(around: type[Around]) -> None:
    result, _ = folded(around(), X, form="graph", merge=True)
    assert convs(result) == 3
    assert error(result, copy.deepcopy(result), X) == 0


class Telling(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return 2 * part(x) if isinstance(part, Branches) else part(x)


class Typed(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return 2 * part(x) if type(part) is Branches else part(x)


class Hooked(Around):
    def __init__(self) -> None:
        super().__init__()
        for part in self.rest:
            part.register_forward_hook(lambda module, args, output: 2 * output)


class Fork(Branches):
    """Other sizes go another way: the code around may call it with any."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[-1] > 5 else self.a(x) - self.b(x)


class Masked(Branches):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


class Masking(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return part(x, None if float(x.abs().max()) < 100 else x)  # type: ignore[no-any-return]


class Method(Branches):
    def difference(self, x: Tensor) -> Tensor:
        return self.a(x) - self.norm(x)


class Calling(Around):
    def step(self, part: Any, x: Tensor) -> Tensor:
        return part.difference(x) + part(x)  # type: ignore[no-any-return]


LEFT = {
    "which class it is": (Telling, Branches),
    "of which type it is": (Typed, Branches),
    "a hook": (Hooked, Branches),
    "a fork on sizes": (Around, Fork),
    "an argument that may be given": (Masking, Masked),
    "a method beside the call": (Calling, Method),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_would_show_in_the_code_around_stays(name: str) -> None:
    around, part = LEFT[name]
    model = prepared(around() if part is Branches else around(part), X)
    result = fold(model, X, form="graph", merge=True, verify=False).model
    for x in (X, X[..., :4], 1000 * X):
        assert error(model, result, x) < 1e-11
    assert convs(result) > 3


def test_a_list_whose_items_methods_are_called_is_left_alone() -> None:
    folded(Around(Method), X)
    _, report = folded(Calling(Method), X)
    assert {entry.name for entry in report.kept} == {"first.norm", "rest.0.norm", "rest.1.norm"}


def test_hooks_on_a_model_stay_when_it_merges() -> None:
    model = Branches()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    result, _ = folded(model, X, form="graph", merge=True)
    assert convs(result) == 1


class OfType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) if type(self.norm) is nn.BatchNorm2d else 2 * x  # type: ignore[no-any-return]


def test_a_norm_of_which_the_type_is_asked_stays() -> None:
    _, report = folded(OfType(), X)
    assert [entry.name for entry in report.kept] == ["norm"]
