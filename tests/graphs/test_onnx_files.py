"""ONNX files: folded file to file with weights streamed, refused when damaged, never importing torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper

from bntool.errors import LoadError, RunError, UsageError, VerificationError
from bntool.fold import fold
from bntool.fold_onnx import fold_file, fold_model
from bntool.onnx_folding import carry_out
from bntool.sources.inputs import parse_input
from bntool.sources.onnx_wire import read_skeleton
from tests.graphs.onnx_models import EXACT, by_runtime, count, error, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import node

ROOT = Path(__file__).resolve().parents[2]


def two_layers(dtype: str = "float32", **options: Any) -> ModelProto:
    """Weights large enough to stay in the file, and small ones that do not."""
    nodes = [node("Conv", "x w", "y"), norm("y", "z"), node("Relu", "z", "r"), node("Conv", "r v", "s")]
    weights = {"w": weight(32, 16, 3, 3), "v": weight(8, 32, 1, 1), **norm_weights(32)}
    nodes.append(norm("s", "t", "bn2"))
    shape, options = {"x": ["batch", 16, 6, 6]}, {"opset": 20, **options}
    return model(nodes, shape, ["t"], {**weights, **norm_weights(8, "bn2")}, dtype=dtype, **options)


def saved(proto: ModelProto, path: Path, *, external: bool = False) -> Path:
    copied = ModelProto()
    copied.CopyFrom(proto)
    onnx.save(copied, path, save_as_external_data=external, location="weights.bin", size_threshold=100)
    return path


def test_file_to_file(tmp_path: Path) -> None:
    source, target = saved(two_layers(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    before = source.read_bytes()
    report = fold_file(source, target)
    assert (report.found, len(report.folded)) == (2, 2)
    assert report.verification.ok
    assert [run.batch for run in report.verification.runs] == [1, 2]
    onnx.checker.check_model(str(target), full_check=True)
    assert count(onnx.load(target)) == 0
    assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_large_tensors_are_not_loaded_with_the_graph(tmp_path: Path) -> None:
    source = saved(two_layers(), tmp_path / "a.onnx")
    skeleton = read_skeleton(source)
    assert {t.name: t.HasField("raw_data") for t in skeleton.graph.initializer}["w"] is False
    assert skeleton.ByteSize() < source.stat().st_size / 3


def test_external_data_stays_external(tmp_path: Path) -> None:
    source, target = saved(two_layers(), tmp_path / "a.onnx", external=True), tmp_path / "b.onnx"
    report = fold_file(source, target)
    assert report.verification.ok
    assert (tmp_path / "b.onnx.data").stat().st_size == 4 * 32 * 16 * 9
    assert target.stat().st_size < 4000
    found = onnx.load(target)
    assert count(found) == 0
    assert error(two_layers(), found) < 1e-5


def test_external_data_elsewhere_is_not_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    source = saved(two_layers(), home / "a.onnx", external=True)
    (home / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(LoadError, match="missing"):
        fold_file(source, home / "b.onnx", verify=False)
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            tensor.external_data[0].value = "../weights.bin"
    onnx.save(proto, source)
    with pytest.raises(LoadError, match="outside"):
        fold_file(source, home / "b.onnx", verify=False)
    assert not (home / "b.onnx").exists()


def damaged(proto: ModelProto, part: str) -> None:
    if part == "no number":
        next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "offset").value = "x"
    if part == "small tensor":
        proto.graph.initializer[-1].raw_data = b"less"
    if part == "order":
        proto.graph.node.append(proto.graph.node[0])
        del proto.graph.node[0]


@pytest.mark.parametrize(
    "part", ["nothing", "text", "half", "short data", "no number", "small tensor", "order"]
)
def test_a_damaged_file_ends_in_one_message(part: str, tmp_path: Path) -> None:
    source = saved(two_layers(), tmp_path / "a.onnx", external=part in ("short data", "no number"))
    whole = source.read_bytes()
    if part == "short data":
        data = tmp_path / "weights.bin"
        data.write_bytes(data.read_bytes()[:100])
    elif part in ("no number", "small tensor", "order"):
        proto = onnx.load(source, load_external_data=False)
        damaged(proto, part)
        source.write_bytes(proto.SerializeToString())
    else:
        source.write_bytes(
            {"nothing": b"", "text": b"hello, this is no model", "half": whole[: len(whole) // 2]}[part]
        )
    with pytest.raises(LoadError):
        fold_file(source, tmp_path / "b.onnx", verify=False)
    assert not (tmp_path / "b.onnx").exists()


def test_an_existing_target_needs_force(tmp_path: Path) -> None:
    source, target = saved(two_layers(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError):
        fold_file(source, target)
    assert target.read_bytes() == b"mine"
    fold_file(source, target, force=True)
    assert count(onnx.load(target)) == 0


def test_without_an_output_nothing_is_written(tmp_path: Path) -> None:
    source = saved(two_layers(), tmp_path / "a.onnx")
    assert len(fold_file(source).folded) == 2
    assert len(fold_file(source, verify=False).folded) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_a_wrong_fold_is_not_written_and_its_norm_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = carry_out._multiplied

    def damaged(old: Any, *rest: Any) -> Any:
        return honest(old, *rest) * np.float32(1.01 if old.shape == (8, 32, 1, 1) else 1)

    monkeypatch.setattr(carry_out, "_multiplied", damaged)
    source = saved(two_layers(), tmp_path / "a.onnx")
    with pytest.raises(VerificationError, match=r"^bn2: .* is off") as caught:
        fold_file(source, tmp_path / "b.onnx")
    assert caught.value.exit_code == 6
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("kind", ["deep half", "one half"])
def test_neither_depth_nor_one_coarse_number_hides_a_wrong_fold(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "deep half":
        proto, off = deep_half(), 1.04
    else:
        number = [node("Cast", "k", "kf", to=TensorProto.FLOAT), node("Mul", "x kf", "u")]
        proto, off = two_layers(), 1.01
        proto.graph.node[0].input[0] = "u"
        for place, each in enumerate(number):
            proto.graph.node.insert(place, each)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(3, np.float16), "k"))
    source = saved(proto, tmp_path / "a.onnx")
    assert fold_file(source).verification.ok
    honest = carry_out._multiplied

    def damaged(old: Any, *rest: Any) -> Any:
        return honest(old, *rest) * np.float16(off) if old.shape[:2] == (8, 32) else honest(old, *rest)

    monkeypatch.setattr(carry_out, "_multiplied", damaged)
    with pytest.raises(VerificationError, match="is off"):
        fold_file(source)


def pooled(seed: int) -> ModelProto:
    """ONNX Runtime adds the 112 x 112 values of a channel one by one; behind a norm their mean is small."""
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "r"), norm("r", "b")]
    nodes += [node("GlobalAveragePool", "b", "g"), node("Flatten", "g", "f")]
    nodes.append(node("Gemm", "f v", "y", transB=1))
    stored = {"w": weight(16, 3, 3, 3, seed=seed), "v": weight(10, 16), **norm_weights(16, seed=seed)}
    return model(nodes, {"x": ["batch", 3, 112, 112]}, ["y"], stored, dtype="float32", opset=20)


def test_what_a_runtime_rounds_more_than_layers_explain_is_judged_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right folds pass; one that is .3 % off does not, though both are further off than the tolerance."""
    found = [fold_model(pooled(seed)).report.verification for seed in range(4)]
    assert all(each.ok for each in found)
    assert any("float64" in note for each in found for note in each.notes)
    honest = carry_out._multiplied
    monkeypatch.setattr(carry_out, "_multiplied", lambda *args: honest(*args) * np.float32(1.003))
    for seed in range(4):
        with pytest.raises(VerificationError, match="is off"):
            fold_model(pooled(seed))


def test_a_given_tolerance_is_kept() -> None:
    with pytest.raises(VerificationError):
        fold_model(pooled(0), tolerance=1e-9)


def deep_half() -> ModelProto:
    """40 residual blocks and a layer with a norm, in float16."""
    nodes, stored, value = [], {"last": weight(8, 32), **norm_weights(8)}, "x"
    for number in range(40):
        stored[f"w{number}"] = weight(32, 32, seed=number) / 8
        nodes.append(node("MatMul", f"{value} w{number}", f"m{number}"))
        nodes.append(node("Relu", f"m{number}", f"r{number}"))
        nodes.append(node("Add", f"{value} r{number}", f"s{number}"))
        nodes.append(node("Mul", f"s{number} less", f"h{number}"))
        value = f"h{number}"
    stored["less"] = np.array(0.7)
    nodes += [node("Gemm", f"{value} last", "y", transB=1), norm("y", "z")]
    return model(nodes, {"x": ["batch", 32]}, ["z"], stored, dtype="float16", opset=20)


def test_a_model_that_amplifies_rounding_is_said_to_be_one(tmp_path: Path) -> None:
    """Differences that its own inputs' last bits would make are not blamed on a norm."""
    large = [node("Mul", "t huge", "u"), node("Sin", "u", "v")]
    nodes = [node("Conv", "x w", "y"), norm("y", "t"), *large]
    weights = {"w": weight(8, 16, 3, 3), **norm_weights(8), "huge": np.array(1e6)}
    proto = model(nodes, {"x": ["batch", 16, 6, 6]}, ["v"], weights, dtype="float32", opset=20)
    with pytest.raises(VerificationError, match="so is the original"):
        fold_file(saved(proto, tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert fold_file(tmp_path / "a.onnx", tmp_path / "b.onnx", tolerance=3.0).verification.ok


@pytest.mark.parametrize("opset", [7, 9, 13, 20])
def test_float64_is_compared_by_the_reference_evaluator_and_said(opset: int, tmp_path: Path) -> None:
    """By itself that takes a norm of an old opset for one that trains."""
    source = saved(two_layers("float64", opset=opset), tmp_path / "a.onnx")
    verification = fold_file(source).verification
    assert verification.ok
    assert "reference evaluator" in verification.notes[0]
    assert verification.smallest_tolerance < EXACT


def test_an_output_need_not_say_its_shape(tmp_path: Path) -> None:
    """Nor is it asked for where a model is loaded first, as for `fold` in Python."""
    proto = two_layers()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    source = saved(proto, tmp_path / "a.onnx")
    assert len(fold(str(source)).report.folded) == len(fold_file(source).folded) == 2


def test_sizes_of_open_inputs_can_be_given(tmp_path: Path) -> None:
    proto = two_layers()
    for dim in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[dim].dim_param = f"size{dim}"
    source = saved(proto, tmp_path / "a.onnx")
    report = fold_file(source, inputs=[parse_input("1x16x9x9")])
    assert report.verification.ok
    assert len(report.folded) == 2
    with pytest.raises(UsageError, match="no input y"):
        fold_file(source, inputs=[parse_input("y:1x16x9x9")])


def test_onnx_ir_models_give_onnx_ir_models(tmp_path: Path) -> None:
    for external in (False, True):
        source = saved(two_layers(), tmp_path / f"{external}.onnx", external=external)
        loaded = onnx_ir.load(source)
        result = fold(loaded)
        assert isinstance(result.model, onnx_ir.Model)
        assert result.report.verification.ok
        assert "BatchNormalization" not in {n.op_type for n in result.model.graph}
        onnx_ir.save(result.model, tmp_path / f"{external}-folded.onnx")
        assert error(two_layers(), onnx.load(tmp_path / f"{external}-folded.onnx")) < 1e-5


def test_the_model_passed_in_is_not_changed() -> None:
    proto = two_layers()
    before = proto.SerializeToString()
    by_runtime(proto)
    assert proto.SerializeToString() == before


def test_the_command_imports_neither_torch_nor_onnx_ir(tmp_path: Path) -> None:
    source = saved(two_layers(), tmp_path / "a.onnx")
    code = f"""
import sys
sys.argv = ["bntool", "fold", {str(source)!r}, "-o", {str(tmp_path / "b.onnx")!r}, "-q"]
from bntool.cli.app import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
heavy = {{"torch", "onnx_ir", "sympy", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert count(onnx.load(tmp_path / "b.onnx")) == 0


def test_the_function_imports_no_torch() -> None:
    code = """
import sys
import onnx
from tests.graphs.test_onnx_files import two_layers
for name in [n for n in sys.modules if n.split(".")[0] == "torch"]:
    raise AssertionError(name)
import bntool
assert bntool.fold(two_layers()).report.verification.ok
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_values_survive_to_the_last_bit_where_nothing_folds(tmp_path: Path) -> None:
    source, target = saved(two_layers(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    fold_file(source, target, keep=["*"])
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (source, target)
    )
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)


def test_operators_that_nobody_knows_fold_without_verification(tmp_path: Path) -> None:
    proto = two_layers()
    (output,) = proto.graph.output
    proto.graph.node.append(onnx.helper.make_node("Own", [output.name], ["own"], domain="mine"))
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    output.name = "own"
    source = saved(proto, tmp_path / "a.onnx")
    with pytest.raises(RunError, match="Pass --no-verify"):
        fold_file(source, tmp_path / "b.onnx")
    assert len(fold_file(source, tmp_path / "b.onnx", verify=False).folded) == 2
