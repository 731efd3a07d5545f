"""A fold that is wrong is not returned, and its norm is named: in every form, by bisection."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool import rewriting
from bntool.blame import first_wrong
from bntool.errors import RunError, VerificationError
from tests.folding import ConvNorm, prepared

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
#: the damaged layer is known by its weight's shape
DAMAGED = (5, 6, 1, 1)


class Net(nn.Module):
    """Five norms, the third behind the damaged layer; the last two on branches that merge."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((4, 7), (7, 6), (6, 5))
        self.blocks = nn.ModuleList(self.block(i, o) for i, o in widths)
        self.left, self.right = self.block(5, 3), self.block(5, 3)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return self.left(x) + self.right(x)


def to_onnx(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    file, mode = io.BytesIO(), torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=False, training=mode, do_constant_folding=False)
    return onnx.load_from_string(file.getvalue())


#: what is folded, and how
FORMS: dict[str, tuple[Callable[[nn.Module, Tensor], Any], dict[str, Any]]] = {
    "module": (lambda model, x: model, {}),
    "graph": (lambda model, x: model, {"form": "graph"}),
    "graph, merged": (lambda model, x: model, {"form": "graph", "merge": True}),
    "program": (lambda model, x: torch.export.export(model, (x,)), {}),
    "core program": (lambda model, x: torch.export.export(model, (x,)).run_decompositions(), {}),
    "program, merged": (lambda model, x: torch.export.export(model, (x,)), {"merge": True}),
    "ONNX": (to_onnx, {}),
    "ONNX, merged": (to_onnx, {"merge": True}),
}


def made(form: str) -> tuple[Any, Any, dict[str, Any]]:
    """(what is folded, its inputs, how)"""
    torch.manual_seed(0)
    model, x = prepared(Net(), X.double()), X.double()
    make, options = FORMS[form]
    if "ONNX" in form:
        model, x = model.float(), x.float()
    return make(model, x), None if "ONNX" in form else x, options


@pytest.mark.parametrize("tolerance", [None, 1e-4])
@pytest.mark.parametrize("form", FORMS)
def test_the_norm_of_a_wrong_fold_is_named(
    monkeypatch: pytest.MonkeyPatch, form: str, tolerance: float | None
) -> None:
    honest = rewriting.factor

    def damaged(kind: str, shape: tuple[int, ...], *rest: Any) -> Any:
        return honest(kind, shape, *rest) * (1.01 if shape == DAMAGED else 1.0)

    model, inputs, options = made(form)
    assert len(bntool.fold(model, inputs, tolerance=tolerance, **options).report.folded) == 5
    monkeypatch.setattr(rewriting, "factor", damaged)
    with pytest.raises(VerificationError, match=r"^blocks\.2\.1: .* is off by") as caught:
        bntool.fold(model, inputs, tolerance=tolerance, **options)
    assert "--keep blocks.2.1 (keep=['blocks.2.1'])" in caught.value.next
    kept = bntool.fold(model, inputs, keep=("blocks.2.1",), **options).report
    assert [e.name for e in kept.kept] == ["blocks.2.1"]


DICE = np.random.default_rng(0)


class Moody(ConvNorm):
    """Draws numbers that no seed of torch's decides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * DICE.uniform()


def test_a_model_that_differs_from_itself_is_not_blamed_on_a_norm() -> None:
    with pytest.raises(VerificationError, match="with every norm kept: does it depend on more than its inp"):
        bntool.fold(prepared(Moody(), X.double()), X.double())


@pytest.mark.parametrize("wrong", range(1, 8))
def test_bisection_finds_the_first_wrong_one(wrong: int) -> None:
    names, asked = [f"n[{i}]" for i in range(1, 8)], list[int]()

    def right(kept: tuple[str, ...]) -> bool:
        count = sum(not bntool.globs.matches(name, kept) for name in names)
        asked.append(count)
        return count < wrong

    assert first_wrong(names, right) == f"n[{wrong}]"
    assert len(asked) <= 1 + np.ceil(np.log2(len(names)))


@pytest.mark.parametrize("heavy", ["scale", "shift"])
@pytest.mark.parametrize("form", ["module", "graph", "program", "core program", "ONNX"])
def test_of_two_norms_only_the_one_that_overflows_stays(form: str, heavy: str) -> None:
    """Both would go into one layer in half precision: `0` in front of it, `2` behind it."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Tanh()).eval()
    for norm in (layers[0], layers[2]):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.8, 1.2)
    if heavy == "scale":
        layers[2].running_var.fill_(1e-5)
        nn.init.constant_(layers[2].weight, 3e4)
    else:
        nn.init.constant_(layers[2].bias, 65e3)
        nn.init.constant_(layers[2].running_mean, -65e3)
        nn.init.uniform_(layers[0].weight, 20, 30)
    model, x = layers.half(), X.half()
    make, options = FORMS[form]
    report = bntool.fold(make(model, x), None if form == "ONNX" else x, verify=False, **options).report
    assert [e.name for e in report.folded] == ["0"]
    assert [e.name for e in report.kept] == ["2"]
    assert "would leave the range of float16" in report.kept[0].reason


def test_a_norm_without_which_the_model_raises_is_named() -> None:
    class Scaling(nn.BatchNorm2d):
        def factor(self) -> float:
            return 2.0

    class Asking(ConvNorm):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = Scaling(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x)) * self.norm.factor())  # type: ignore[no-any-return]

    model = prepared(Asking(), X.double())
    with pytest.raises(
        VerificationError, match=r"norm: without it the model raised AttributeError.*keep=\['norm'\]"
    ):
        bntool.fold(model, X.double())
    kept = bntool.fold(model, X.double(), keep="norm").report.kept
    assert [entry.name for entry in kept] == ["norm"]
    with pytest.raises(RunError):
        bntool.fold(model, X[:, :1].double())
