"""Norms into ONNX files: behind every layer that takes one, outputs unchanged, and out again by folding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

import bntool
from bntool.errors import RunError, UsageError
from bntool.fold_onnx import fold_file
from bntool.insert_onnx import OnnxInsertReport, insert_file
from bntool.onnx_inserting.put_in import Setting
from tests.graphs.onnx_models import count, feeds, model, norm, norm_weights, weight

EPS32 = float(np.finfo(np.float32).eps)


def conv(x: str, y: str, name: str = "", **attrs: Any) -> onnx.NodeProto:
    name = name or y
    return helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [y], name=y, **attrs)


def weights(*names: str, channels: int = 4, kernel: int = 3) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for seed, name in enumerate(names):
        found[f"{name}.weight"] = weight(channels, channels, kernel, kernel, seed=seed) * 0.2
        found[f"{name}.bias"] = weight(channels, seed=seed)
    return found


def network(dtype: str = "float32", opset: int = 17) -> ModelProto:
    """conv, relu, conv, add of a shortcut, relu, conv: the last is the output layer."""
    nodes = [
        conv("x", "a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["ra"]),
        conv("ra", "b", pads=[1] * 4),
        helper.make_node("Add", ["b", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["rs"]),
        conv("rs", "y", pads=[1] * 4),
    ]
    return model(nodes, {"x": ["n", 4, 6, 6]}, ["y"], weights("a", "b", "y"), dtype=dtype, opset=opset)


def inserted(proto: ModelProto, folder: Path, **options: Any) -> tuple[ModelProto, OnnxInsertReport]:
    onnx.save(proto, folder / "plain.onnx")
    report = insert_file(folder / "plain.onnx", folder / "normed.onnx", **options)
    made = onnx.load(folder / "normed.onnx")
    onnx.checker.check_model(made, full_check=True)
    return made, report


def run(proto: ModelProto, given: dict[str, NDArray[Any]]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0], dtype=np.float64)


def tensors(proto: ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize(("dtype", "opset"), [("float32", 17), ("float32", 9), ("float16", 17)])
def test_outputs_stay_and_the_result_is_valid(dtype: str, opset: int, tmp_path: Path) -> None:
    plain = network(dtype, opset)
    made, report = inserted(plain, tmp_path)
    assert [e.layer for e in report.inserted] == ["a", "b"]
    assert report.left_out == {"y": "the output layer: no layer comes after it"}
    assert count(made) == 2
    assert [v.name for v in made.graph.output] == ["y"]
    expected, got = (run(p, feeds(plain, 3, seed=9)) for p in (plain, made))
    eps = float(np.finfo(dtype).eps)
    assert np.abs(got - expected).max() <= 32 * eps * np.abs(expected).max()
    assert report.verification is not None
    assert report.verification.ok


def test_statistics_are_pooled_over_the_data_and_the_bias_moves_into_the_norm(tmp_path: Path) -> None:
    plain = network()
    data = [feeds(plain, n, seed=n)["x"] * n for n in (2, 5)]
    made, report = inserted(plain, tmp_path, data=[(x, "a label") for x in data])
    kept, _ = inserted(plain, tmp_path, data=data, setting=Setting(keep_bias=True), force=True)
    watched = ModelProto()
    watched.CopyFrom(plain)
    watched.graph.output[0].name = "a"
    values = np.concatenate([run(watched, {"x": x}) for x in data]).swapaxes(0, 1).reshape(4, -1)
    found, whole = tensors(made), tensors(kept)
    assert np.allclose(whole["a_norm.running_mean"], values.mean(1), atol=1e-5)
    assert np.allclose(found["a_norm.running_var"], values.var(1, ddof=1), rtol=1e-5)
    assert np.allclose(found["a_norm.bias"], values.mean(1), atol=1e-5)
    shift = whole["a_norm.running_mean"] - found["a_norm.running_mean"]
    assert np.allclose(shift, tensors(plain)["a.bias"], atol=1e-6)
    assert "a.bias" not in found
    assert (report.batches, report.samples) == (2, 7)
    assert [e.bias for e in report.inserted] == ["dropped", "dropped"]
    assert report.inserted[0].n_eff == 5 * 36


def test_folding_gives_the_weights_back(tmp_path: Path) -> None:
    plain = network()
    inserted(plain, tmp_path)
    report = fold_file(tmp_path / "normed.onnx", tmp_path / "back.onnx")
    assert len(report.folded) == 2
    back, before = onnx.load(tmp_path / "back.onnx"), tensors(plain)
    stored = tensors(back)
    convs = [node for node in back.graph.node if node.op_type == "Conv"]
    for node, name in zip(convs, ("a", "b", "y"), strict=True):
        for port, leaf in ((1, "weight"), (2, "bias")):
            assert np.abs(stored[node.input[port]] - before[f"{name}.{leaf}"]).max() < 1e-6, node


def test_a_channel_that_never_varies_is_flagged_and_passes(tmp_path: Path) -> None:
    plain = network()
    stored = next(t for t in plain.graph.initializer if t.name == "a.weight")
    values = numpy_helper.to_array(stored).copy()
    values[2] = 0
    stored.CopyFrom(numpy_helper.from_array(values, "a.weight"))
    made, report = inserted(plain, tmp_path)
    assert report.inserted[0].dead_channels == 1
    assert "dead" in report.notes[0]
    assert tensors(made)["a_norm.running_var"][2] == 0


def test_what_is_left_out_and_why(tmp_path: Path) -> None:
    nodes = [
        conv("x", "a", pads=[1] * 4),
        norm("a", "na"),
        conv("na", "b", name="shared", pads=[1] * 4),
        conv("b", "c", name="shared", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"]),
        conv("pooled", "gate", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Sigmoid", ["gate"], ["sg"]),
        helper.make_node("Mul", ["c", "sg"], ["m"]),
        helper.make_node("ConvTranspose", ["m", "up.weight", "up.bias"], ["u"], name="up"),
        helper.make_node("GlobalAveragePool", ["u"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight"], ["h"], name="fc"),
        helper.make_node("Gemm", ["h", "out.weight"], ["y"], name="out"),
    ]
    stored = {**weights("a", "shared", "gate", "up"), **norm_weights(4)}
    stored |= {"fc.weight": weight(4, 5), "out.weight": weight(5, 2)}
    plain = model(nodes, {"x": ["n", 4, 6, 6]}, ["y"], stored, dtype="float32", opset=17)
    _, report = inserted(plain, tmp_path)
    assert [e.layer for e in report.inserted] == ["up"]
    assert report.left_out["a"] == "already normalised by bn"
    assert "2 layers compute with its weight" in report.left_out["shared"]
    assert "squeeze-and-excite" in report.left_out["gate"]
    assert "layers='all'" in report.left_out["fc"]
    _, everything = inserted(plain, tmp_path, layers="all", force=True)
    assert [e.layer for e in everything.inserted] == ["up", "fc"]
    assert everything.left_out["out"] == "the output layer: no layer comes after it"
    _, chosen = inserted(plain, tmp_path, include=["f*", "up"], exclude=["up"], force=True)
    assert [e.layer for e in chosen.inserted] == ["fc"]


def test_refusals_write_nothing(tmp_path: Path) -> None:
    bad = feeds(network())["x"]
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(RunError, match="batch 1 gives NaN"):
        inserted(network(), tmp_path, data=[feeds(network())["x"], bad])
    for wrong, words in (
        (np.zeros((2, 5, 6, 6), np.float32), "float32"),
        (np.zeros((2, 4, 6, 6)), "float64"),
    ):
        shape = "x".join(map(str, wrong.shape))
        with pytest.raises(RunError, match=f"^batch 1 of the data, x:{shape}:{words}: ONNX Runtime"):
            inserted(network(), tmp_path, data=[feeds(network())["x"], wrong])
    with pytest.raises(UsageError, match="empty"):
        inserted(network(), tmp_path, data=[])
    with pytest.raises(UsageError, match="opset 8"):
        inserted(network(opset=8), tmp_path)
    with pytest.raises(RunError, match="ONNX Runtime refuses"):
        inserted(network("float64"), tmp_path)
    assert not (tmp_path / "normed.onnx").exists()


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "plain.onnx")
    np.save(tmp_path / "x.npy", feeds(network(), 5)["x"])
    line = ["insert", "plain.onnx", "--data", "x.npy", "--batch-size", "2", "-o", "normed.onnx"]
    code = f"import sys; from bntool.cli import app; sys.exit(app.run({line}) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 norms, statistics from the given data" in done.stdout
    assert "verified" in done.stdout
    assert count(onnx.load(tmp_path / "normed.onnx")) == 2


@pytest.mark.parametrize("kind", ["onnx", "onnx_ir", "file"])
def test_in_python_insert_takes_an_onnx_model_as_fold_does(kind: str, tmp_path: Path) -> None:
    plain = network()
    onnx.save(plain, tmp_path / "plain.onnx")
    given = {"onnx": plain, "onnx_ir": onnx_ir.from_proto(plain), "file": str(tmp_path / "plain.onnx")}[kind]
    before = plain.SerializeToString()
    result = bntool.insert(given, data=[feeds(plain, 5)["x"]], batch_size=2)
    assert plain.SerializeToString() == before
    assert type(result.model) is (ModelProto if kind == "onnx" else onnx_ir.Model)
    made = result.model if kind == "onnx" else onnx_ir.to_proto(result.model)
    onnx.checker.check_model(made, full_check=True)
    assert [(e.layer, e.n_eff) for e in result.report.inserted] == [("a", 72), ("b", 72)]
    expected, got = (run(p, feeds(plain, 3, seed=9)) for p in (plain, made))
    assert np.abs(got - expected).max() <= 32 * EPS32 * np.abs(expected).max()
    folded = bntool.fold(result.model)
    assert len(folded.report.folded) == 2
    assert len(bntool.unfold(folded.model).report.inserted) == 2
    planned = bntool.insert(given, dry_run=True, layers="conv", exclude=["b"])
    assert [e.layer for e in planned.report.inserted] == ["a"]
    same = planned.model if kind == "onnx" else onnx_ir.to_proto(planned.model)
    assert count(same) == 0


def test_example_inputs_give_the_sizes_that_the_graph_leaves_open() -> None:
    nodes = [
        conv("x", "a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("r", "y", pads=[1] * 4),
    ]
    plain = model(nodes, {"x": ["n", 4, "h", "w"]}, ["y"], weights("a", "y"), dtype="float32", opset=17)
    x = np.zeros((2, 4, 7, 5), np.float32)
    for example in (x, (x,), {"x": x}):
        assert bntool.insert(plain, example, batch_size=1).report.inserted[0].n_eff == 35


def test_what_only_modules_take_is_refused_by_name() -> None:
    for option in ({"norm": "group"}, {"where": "before-layer"}, {"init": "fresh"}, {"form": "graph"}):
        with pytest.raises(UsageError, match="and nothing else") as caught:
            bntool.insert(network(), **option)
        assert caught.value.where in option
    with pytest.raises(UsageError, match="momentum"):
        bntool.insert(network(), momentum=None)


def test_verbs_for_modules_say_what_they_were_given() -> None:
    for verb in (lambda m: bntool.calibrate(m, [0]), lambda m: bntool.replace(m, "group")):
        with pytest.raises(UsageError, match="works on PyTorch modules, and this is an ONNX model"):
            verb(network())


def test_in_python_it_needs_no_torch(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "plain.onnx")
    code = (
        "import sys, onnx, bntool; bntool.insert(onnx.load('plain.onnx')); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
