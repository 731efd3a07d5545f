"""What a fold's report says it saves is what the model lost, counted on the model itself."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

import bntool
from bntool.fold_onnx import fold_file
from bntool.result import FoldReport
from tests.random_norms import has_statistics, randomise_norms

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
Size = tuple[int, int]


class Shared(nn.Module):
    """One layer and one norm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)).relu())).relu()


class SharedLinear(nn.Module):
    """The same with a linear layer, whose weight ONNX files transpose at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(36, 36, bias=False), nn.BatchNorm1d(36)

    def forward(self, x: Tensor) -> Tensor:
        once = self.norm(self.linear(x.mean(1).flatten(1))).tanh()
        return self.norm(self.linear(once)).tanh()


class Tied(nn.Module):
    """Two norms with one gamma, of which only one can go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.conv(x)).tanh()).tanh()


class Split(nn.Module):
    """Two layers read one norm: its map goes before both."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, bias=False), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.tanh())
        return torch.cat([self.a(y).flatten(1), self.b(y).flatten(1)], 1)


class Branches(nn.Module):
    """Two branches with norms and a bare one, a norm behind their sum, and a chain that saves work."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norm_a, self.norm_b, self.bare = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last, self.wide, self.narrow = nn.BatchNorm2d(4), nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1)
        self.alone = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_a(self.a(x)) + self.norm_b(self.b(x)) + self.bare(x)
        return self.alone(self.narrow(self.wide(self.last(y).relu())).relu()).relu()


def idle(layer: nn.Module) -> nn.Module:
    """Whose weight is zero."""
    nn.init.zeros_(layer.weight)
    return layer


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bias-free": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
    "biased": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
    "not affine": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
    "two into one": lambda: nn.Sequential(
        nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Tanh()
    ),
    "scale after, shift before": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False)
    ),
    "a bias of zeros": lambda: nn.Sequential(
        nn.Tanh(), nn.BatchNorm2d(4), idle(nn.Conv2d(4, 4, 1, bias=False))
    ),
    "shared": Shared,
    "shared linear": SharedLinear,
    "tied": Tied,
    "split": Split,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(MODELS[name]().eval(), (X,))


def module_size(model: nn.Module) -> Size:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters()), sum(t.nbytes for t in tensors)


def norm_macs(model: nn.Module) -> int:
    """Elements that come out of norms in one run."""
    counts: list[int] = []
    norms = [m for m in model.modules() if has_statistics(m)]
    handles = [n.register_forward_hook(lambda _, inputs, out: counts.append(out.numel())) for n in norms]
    with torch.no_grad():
        model(X.to(next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return sum(counts)


def said(report: FoldReport) -> tuple[int, int, int]:
    """(parameters, bytes, MACs of the norms)"""
    macs = [entry.macs_saved for entry in report.folded]
    assert report.folded
    assert None not in macs
    entries = [*report.folded, *report.merged]
    parameters, size = (sum(getattr(e, f"{name}_saved") for e in entries) for name in ("parameters", "bytes"))
    return parameters, size, sum(m for m in macs if m is not None)


def lost(before: Size, after: Size) -> Size:
    return before[0] - after[0], before[1] - after[1]


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", MODELS)
def test_a_module_loses_what_the_report_says(name: str, form: str) -> None:
    model = made(name)
    result = bntool.fold(model, X, form=form)
    macs = norm_macs(model) - norm_macs(result.model)
    assert said(result.report) == (*lost(module_size(model), module_size(result.model)), macs)


def test_merged_layers_and_their_norms_lose_what_the_report_says() -> None:
    torch.manual_seed(0)
    model = randomise_norms(Branches().eval(), (X,))
    result = bntool.fold(model, X, form="graph", merge=True)
    assert said(result.report) == (*lost(module_size(model), module_size(result.model)), norm_macs(model))
    assert {e.name for e in result.report.folded if e.side == "merged"} >= {"norm_a", "norm_b", "bare"}
    assert all(e.parameters_saved == 8 for e in result.report.folded if e.side == "merged")
    assert [set(m.replaces) for m in result.report.merged] == [{"narrow", "wide"}, {"a", "b"}]
    assert all(m.macs_saved for m in result.report.merged)
    alone = {e.name: (e.scale_min, e.scale_max) for e in bntool.fold(model, X, keep="*").report.kept}
    assert all(alone[e.name] == (e.scale_min, e.scale_max) for e in result.report.folded)


class Padded(nn.Module):
    """A norm before zeros that only another value can stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.tanh()))


class EachItsOwn(nn.Module):
    """A layer called three times, two of them with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)).tanh() + self.b(self.conv(x.tanh())).tanh() + self.conv(x.abs()).tanh()


class OneWeight(nn.Module):
    """Two layers with one weight, each with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.one(x)).tanh() + self.b(self.two(x)).tanh()


@pytest.mark.parametrize(
    ("kind", "option"), [(Padded, "pad_values"), (EachItsOwn, "split"), (OneWeight, "split")]
)
def test_what_a_fold_adds_is_taken_off(kind: type[nn.Module], option: str) -> None:
    """Copies of a layer or a weight that others share, and values to pad with."""
    torch.manual_seed(0)
    model = randomise_norms(kind().eval(), (X,))
    report = (result := bntool.fold(model, X, form="graph", **{option: True})).report
    assert not report.kept
    assert said(report) == (*lost(module_size(model), module_size(result.model)), norm_macs(model))


def test_merged_programs_and_files_lose_what_the_report_says() -> None:
    torch.manual_seed(0)
    model = randomise_norms(Branches().eval(), (X,))
    program = torch.export.export(model, (X,))
    result = bntool.fold(program, merge=True)
    states = [list(p.state_dict.values()) for p in (program, result.model)]
    before, after = (
        (sum(isinstance(v, nn.Parameter) * v.numel() for v in s), sum(v.nbytes for v in s)) for s in states
    )
    assert said(result.report) == (*lost(before, after), norm_macs(model))
    proto = exported(model)
    folded = bntool.fold(proto, merge=True)
    assert said(folded.report)[1:] == (file_bytes(proto) - file_bytes(folded.model), norm_macs(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bytes_are_those_of_the_dtype(dtype: torch.dtype) -> None:
    model = made("two into one").to(dtype)
    result = bntool.fold(model, X.to(dtype))
    assert said(result.report)[:2] == lost(module_size(model), module_size(result.model))


@pytest.mark.parametrize("name", ["two into one", "shared", "split"])
def test_a_program_loses_what_the_report_says(name: str) -> None:
    model = made(name)
    program = torch.export.export(model, (X,))
    result = bntool.fold(program)
    states = [list(p.state_dict.values()) for p in (program, result.model)]
    before, after = (
        (sum(isinstance(v, nn.Parameter) * v.numel() for v in s), sum(v.nbytes for v in s)) for s in states
    )
    assert said(result.report)[:2] == lost(before, after)


def exported(model: nn.Module) -> ModelProto:
    """As it is, by the exporter that keeps norms and the names of tensors."""
    file, mode = io.BytesIO(), torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (X,), file, dynamo=False, training=mode, do_constant_folding=False)
    return onnx.load_from_string(file.getvalue())


def file_bytes(proto: ModelProto) -> int:
    """Of all floats, stored as initialisers or in Constant nodes."""
    constants = [a.t for n in proto.graph.node if n.op_type == "Constant" for a in n.attribute]
    arrays = [onnx.numpy_helper.to_array(t) for t in (*proto.graph.initializer, *constants)]
    return sum(array.nbytes for array in arrays if array.dtype.kind == "f")


@pytest.mark.parametrize("name", MODELS)
def test_a_file_loses_what_the_report_says(name: str, tmp_path: Path) -> None:
    model = made(name)
    proto = exported(model)
    result = bntool.fold(proto)
    onnx.save(proto, tmp_path / "a.onnx")
    assert said(fold_file(tmp_path / "a.onnx", verify=False)) == said(result.report)
    before, after = file_bytes(proto), file_bytes(result.model)
    kept = norm_macs(bntool.fold(model, X).model)
    assert said(result.report)[1:] == (before - after, norm_macs(model) - kept)
