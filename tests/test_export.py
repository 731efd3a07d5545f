"""A torch model written as ONNX computes what PyTorch computes, or is not written."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bntool
from bntool.errors import BntoolError, RunError, UsageError, VerificationError
from bntool.export_check import check_file
from bntool.sources import onnx_run
from bntool.sources.torch_onnx import Call, trace
from tests.random_norms import randomise_norms

SAMPLES = ("siamese", "levit", "unet", "video3d")


class ConvNorm(nn.Module):
    def __init__(self, track: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=track)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


def conv_norm(track: bool = True) -> ConvNorm:
    torch.manual_seed(0)
    return randomise_norms(ConvNorm(track).eval(), (X,))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_models_export_folded_and_verify_at_two_batch_sizes(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"sample_models.{name}")
    torch.manual_seed(0)
    inputs = module.example_inputs()
    model = randomise_norms(getattr(module, name)().eval(), inputs)
    report = bntool.export(model, tmp_path / "m.onnx", inputs, dynamic_batch=True)
    assert report.verified
    batches = {check.batch for check in report.checks}
    assert len(batches) == 2
    assert {(c.optimised, c.batch) for c in report.checks} == {(o, b) for o in (False, True) for b in batches}
    assert report.fold is not None
    assert len(report.fold["folded"]) == report.fold["found"] > 0
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "BatchNormalization" not in kinds
    json.dumps(report.to_dict())


def test_without_fold_the_norms_are_left_to_torch(tmp_path: Path) -> None:
    report = bntool.export(conv_norm(), tmp_path / "m.onnx", X, fold=False)
    assert report.fold is None
    assert report.verified


def test_control_flow_on_data_is_refused_in_one_message(tmp_path: Path) -> None:
    module = importlib.import_module("sample_models.branchy")
    with pytest.raises(RunError, match="torch cannot export it"):
        bntool.export(module.branchy().eval(), tmp_path / "m.onnx", module.example_inputs(), fold=False)
    assert not list(tmp_path.iterdir())


def test_train_mode_is_said_and_the_modes_come_back(tmp_path: Path) -> None:
    model = conv_norm()
    model.norm.train()
    report = bntool.export(model, tmp_path / "m.onnx", X, fold=False)
    assert "1 modules were in train mode: norm" in report.notes[0]
    assert report.verified
    assert (model.training, model.norm.training) == (False, True)


def test_a_norm_without_running_statistics_is_said(tmp_path: Path) -> None:
    report = bntool.export(conv_norm(track=False), tmp_path / "m.onnx", X, fold=False, dynamic_batch=True)
    assert "no running statistics" in report.notes[0]
    assert report.verified


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_the_runtime_has_no_convolution_for_is_verified_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    report = bntool.export(conv_norm().to(dtype), tmp_path / "m.onnx", X.to(dtype), fold=False)
    assert "compared was the same model in float32" in report.notes[0]
    assert report.verified
    assert {c.dtype for c in report.checks} == {"float32"}
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_layer_the_runtime_has_for_float32_alone_is_verified_in_that(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    report = bntool.export(Recurrent().eval().double(), tmp_path / "m.onnx", torch.randn(3, 2, 4).double())
    assert report.verified
    assert {c.dtype for c in report.checks} == {"float32"}


def test_half_precision_runs_as_it_is(tmp_path: Path) -> None:
    report = bntool.export(conv_norm().half(), tmp_path / "m.onnx", X.half(), fold=False)
    assert report.verified
    assert report.checks[0].dtype == "float16"


class Many(nn.Module):
    """A dictionary, a tuple and an option as inputs; several outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, image: Tensor, pair: tuple[Tensor, Tensor], scale: float = 2.0, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        y = self.linear(image) + pair[0] - pair[1]
        return {"a": y * scale, "b": y if mask is None else y * mask}


def test_dictionary_inputs_in_any_order_and_several_outputs(tmp_path: Path) -> None:
    inputs = {
        "mask": torch.rand(3, 4),
        "pair": (torch.rand(3, 4), torch.rand(3, 4)),
        "image": torch.rand(3, 4),
    }
    report = bntool.export(Many().eval(), tmp_path / "m.onnx", inputs, fold=False, dynamic_batch=True)
    assert report.verified
    assert len(report.inputs) == 4
    assert report.outputs == ("a", "b")


def test_names_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = bntool.export(conv_norm(), path, X, fold=False, input_names=["image"], output_names=["scores"])
    assert (report.inputs, report.outputs) == (("image",), ("scores",))
    graph = onnx.load(path).graph
    assert (graph.input[0].name, graph.output[0].name) == ("image", "scores")


def test_an_opset_torch_cannot_write_is_refused_instead_of_another_one_written(tmp_path: Path) -> None:
    assert bntool.export(conv_norm(), tmp_path / "m.onnx", X, fold=False, opset=21).opset == 21
    with pytest.raises(RunError, match="cannot write this model in opset 9"):
        bntool.export(conv_norm(), tmp_path / "n.onnx", X, fold=False, opset=9)
    assert not (tmp_path / "n.onnx").exists()


def test_nothing_is_written_when_the_file_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there")
    honest = onnx_run.run
    monkeypatch.setattr(onnx_run, "run", lambda *a: [v * np.float32(1.01) for v in honest(*a)])
    with pytest.raises(VerificationError) as caught:
        bntool.export(conv_norm(), path, X, fold=False)
    assert caught.value.exit_code == 6
    assert path.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert bntool.export(conv_norm(), path, X, fold=False, tolerance=0.02).verified


def test_external_data_lies_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = bntool.export(conv_norm(), path, X, fold=False, external_data=True)
    assert report.external_data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    session = onnx_run.session(path)
    assert report.size_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    got = onnx_run.run(session, {report.inputs[0]: X.numpy()})[0]
    assert np.allclose(got, conv_norm()(X).detach().numpy(), atol=1e-5)


def test_the_call_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        bntool.export(conv_norm(), tmp_path / "m.pt", X)
    with pytest.raises(UsageError):
        bntool.export(conv_norm(), tmp_path / "m.onnx", (X, X))
    with pytest.raises(UsageError, match="no such directory"):
        bntool.export(conv_norm(), tmp_path / "none" / "m.onnx", X)


def test_the_batch_that_a_model_fixes_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, 8, 8)

    with pytest.raises(RunError, match="fixes its batch size"):
        bntool.export(Fixed(), tmp_path / "m.onnx", X, fold=False, dynamic_batch=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_norms_fold_in_the_dtype_of_the_model_and_the_file_is_verified(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    report = bntool.export(conv_norm().to(dtype), tmp_path / "m.onnx", X.to(dtype))
    assert report.verified
    assert report.fold is not None
    assert len(report.fold["folded"]) == 1


class Scaled(nn.Module):
    """Multiplies with a number that one of the two takes from its input."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if self.fixed else x * x.flatten()[:1]


def test_a_number_that_the_exporter_took_from_the_example_is_found(tmp_path: Path) -> None:
    x = torch.full((2, 3), 3.0) + torch.tensor([[0.0, 1, 2], [3, 4, 5]])
    call = Call.of(Scaled(fixed=True), x)
    traced = trace(Scaled(fixed=True), call)
    traced.save(tmp_path / "m.onnx", False)
    assert all(check.ok for check in check_file(Scaled(fixed=True), traced, tmp_path / "m.onnx", call))
    checks = check_file(Scaled(fixed=False), traced, tmp_path / "m.onnx", call)
    assert [check.ok for check in checks] == [True, False, True, False]


@pytest.mark.parametrize("fold", [False, True])
def test_a_model_that_returns_no_tensors_is_refused_in_words(fold: bool, tmp_path: Path) -> None:
    class Silent(ConvNorm):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)

    with pytest.raises(BntoolError, match="returns no tensors"):
        bntool.export(Silent().eval(), tmp_path / "m.onnx", X, fold=fold)


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


class Answers(ConvNorm):
    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


class Counting(ConvNorm):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return super().forward(x) + self.calls


class Numbers(ConvNorm):
    def forward(self, x: Tensor) -> Any:
        return {"y": super().forward(x), "count": 3, "none": None}


class Raising(ConvNorm):
    def forward(self, x: Tensor) -> Any:
        raise ValueError("my own words")


def test_a_dataclass_that_torch_does_not_know_names_the_outputs(tmp_path: Path) -> None:
    report = bntool.export(Answers().eval(), tmp_path / "m.onnx", X)
    assert report.outputs == ("logits",)
    torch.export.save(torch.export.export(Answers().eval(), (X,)), tmp_path / "m.pt2")


def test_a_model_that_counts_its_calls_is_written_as_on_the_first_one(tmp_path: Path) -> None:
    model = Counting().eval()
    report = bntool.export(model, tmp_path / "m.onnx", X)
    assert report.verified
    assert "each call of the model changes calls" in report.notes[0]
    assert model.calls == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Numbers, "output count is of type int"), (Raising, "the model raised ValueError: my own words")],
)
def test_what_no_exporter_could_do_is_said_in_our_words(
    kind: type[nn.Module], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=words) as caught:
        bntool.export(kind().eval(), tmp_path / "m.onnx", X)
    assert "torch.cond" not in str(caught.value)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_is_written_as_the_module_would_be(dynamic: bool, tmp_path: Path) -> None:
    model = conv_norm()
    program = torch.export.export(
        model, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},) if dynamic else None
    )
    report = bntool.export(program, tmp_path / "m.onnx", X, dynamic_batch=dynamic)
    assert report.verified
    assert report.inputs == ("x",)
    assert report.fold is not None
    assert len(report.fold["folded"]) == 1
    assert not report.notes
    assert bntool.verify(model, str(tmp_path / "m.onnx"), X).ok
    if not dynamic:
        with pytest.raises(RunError, match="fixes its batch size"):
            bntool.export(program, tmp_path / "again.onnx", X, dynamic_batch=True)


def test_a_program_that_takes_some_inputs_by_name_only(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_norm()

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.inner(x) * scale

    scale = torch.rand(len(X), 1, 1, 1)
    program = torch.export.export(Scaled().eval(), (X,), {"scale": scale})
    report = bntool.export(program, tmp_path / "m.onnx", {"x": X, "scale": scale})
    assert report.verified
    assert report.inputs == ("x", "scale")


def test_an_onnx_model_is_one_already(tmp_path: Path) -> None:
    bntool.export(conv_norm(), tmp_path / "m.onnx", X)
    with pytest.raises(UsageError, match="an ONNX model already"):
        bntool.export(onnx.load(tmp_path / "m.onnx"), tmp_path / "again.onnx", X)
