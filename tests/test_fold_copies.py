"""What a model holds besides modules and tensors: a fold works on a copy, and not all can be copied."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bntool.errors import UsageError
from bntool.fold import fold
from tests.folding import ConvNorm, error, prepared

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Holds(ConvNorm):
    """A convolution and a norm beside something else."""

    def __init__(self, held: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Identity()})
        self.held = held(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize(
    "held",
    [
        lambda self: F,
        lambda self: [F, {"functions": F}],
        lambda self: self.layers.keys(),
        lambda self: threading.Lock(),
        lambda self: {"done": threading.Event()},
    ],
)
def test_what_deepcopy_refuses_and_the_forward_does_not_change_is_no_obstacle(held: Any, form: str) -> None:
    model = prepared(Holds(held), X)
    result = fold(model, (X,), form=form)
    assert not result.report.kept
    assert error(result.model, model, X) < 1e-12
    if form == "module":
        assert type(result.model.held) is type(model.held)


def test_keys_of_the_copy_are_its_own() -> None:
    model = prepared(Holds(lambda self: self.layers.keys()), X)
    folded = fold(model, (X,)).model
    model.layers["b"] = nn.Identity()
    assert list(folded.held) == ["a"]


@pytest.mark.parametrize("held", [lambda self: self.parameters(), lambda self: self._modules.values()])
def test_what_can_be_neither_copied_nor_shared_is_named(held: Any) -> None:
    with pytest.raises(UsageError, match="held: it cannot be copied: cannot pickle"):
        fold(prepared(Holds(held), X), (X,))
