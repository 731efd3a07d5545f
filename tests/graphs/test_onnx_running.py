"""What a fold of an ONNX model is run on; outputs that are no arrays, or not the same twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from bntool.errors import RunError, UsageError, VerificationError
from bntool.fold_onnx import fold_file, fold_model
from bntool.sources.inputs import parse_input
from bntool.verify import verify
from tests.graphs.onnx_models import by_runtime, count, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import N, node, reasons
from tests.graphs.test_onnx_ranks import without_shape

CONV = {"w": weight(4, 3, 3, 3), **norm_weights(4)}


def conv_and(*nodes: Any, **options: Any) -> ModelProto:
    """`x` -> Conv -> norm `z`, and what else is given; float32."""
    weights = {**CONV, **options.pop("weights", {})}
    made = [node("Conv", "x w", "y"), norm("y", "z"), *nodes]
    options = {"dtype": "float32", "opset": 17, "ir_version": 8, "outputs": ["z"]} | options
    inputs = {"x": [N, 3, 8, 8], **options.pop("inputs", {})}
    return model(made, inputs, options.pop("outputs"), weights, **options)


def batches(report: Any) -> list[int | None]:
    return [run.batch for run in report.verification.runs]


# --- open sizes


def test_a_size_of_minus_one_is_open() -> None:
    made = conv_and()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert count(by_runtime(made)[0]) == 0


@pytest.mark.parametrize("shape", [(None, 3, None, None), (N, 3, "H", "W"), (-1, 3, -1, -1), None])
def test_given_sizes_count_whether_or_not_open_ones_have_names(shape: Any) -> None:
    nodes = [node("GlobalAveragePool", "z", "g"), node("Flatten", "g", "f")]
    made = conv_and(*nodes, weights={"w": weight(4, 3, 99, 99)}, outputs=["f"])
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    without_shape(made, "none")
    with pytest.raises(RunError, match="--input x:"):  # images of 96 by 96 are too small
        fold_model(made)
    report = fold_model(made, shapes={"x": (5, 3, 101, 100)}).report
    assert report.verification.ok
    assert batches(report)[0] == 5
    assert len(report.folded) == 1


def test_the_given_batch_is_run_first_and_others_where_the_model_runs() -> None:
    """A video model: eight frames are one clip."""
    nodes = [node("Reshape", "z clips", "r"), node("ReduceMean", "r", "m", axes=[1], keepdims=0)]
    made = conv_and(*nodes, weights={"clips": np.array([-1, 8, 4, 6, 6])}, outputs=["m"])
    report = fold_model(made, shapes={"x": (8, 3, 8, 8)}).report
    assert batches(report) == [8]
    assert report.verification.ok
    assert any("the original does not run there" in note for note in report.verification.notes)
    with pytest.raises(RunError, match="Give sizes that it takes"):
        fold_model(made)
    with pytest.raises(RunError, match="x:7x3x8x8"):
        fold_model(made, shapes={"x": (7, 3, 8, 8)})


def test_a_size_given_at_one_input_counts_at_all_that_share_it() -> None:
    made = conv_and(node("Add", "z other", "s"), inputs={"other": [N, 1, 1, 1]}, outputs=["s"])
    made.graph.input.reverse()
    assert batches(fold_model(made, shapes={"x": (3, 3, 8, 8)}).report) == [3, 1, 2]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x:1x4x8x8", "x is batchx3x8x8, not 1x4x8x8"),
        ("1x3x8", "x is batchx3x8x8, not 1x3x8"),
        ("1x3x8x8:float64", "x is float32, not float64"),
    ],
)
def test_sizes_that_contradict_the_graph_are_refused_in_one_message(
    spec: str, said: str, tmp_path: Path
) -> None:
    onnx.save(conv_and(), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=said):
        fold_file(tmp_path / "a.onnx", inputs=[parse_input(spec)])


def test_one_open_size_cannot_be_two() -> None:
    made = conv_and(node("Add", "z other", "s"), inputs={"other": [N, 1, 1, 1]}, outputs=["s"])
    with pytest.raises(UsageError, match="batch would be 2 and 3"):
        fold_model(made, shapes={"x": (2, 3, 8, 8), "other": (3, 1, 1, 1)})


# --- outputs of other kinds


def labelled() -> ModelProto:
    labels = helper.make_node(
        "LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml",
        keys_int64s=[0, 1, 2, 3], values_strings=["a", "b", "c", "d"],
    )  # fmt: skip
    nodes = [node("ReduceMean", "z", "mean", axes=[2, 3], keepdims=0), node("ArgMax", "mean", "best", axis=1)]
    made = conv_and(*nodes)
    made.graph.node.append(labels)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    made.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, None))
    return made


def test_labels_have_to_be_equal() -> None:
    made = labelled()
    result = fold_model(made)
    assert result.report.verification.ok
    assert [a.output for a in result.report.verification.runs[0].outputs] == ["z"]
    other = ModelProto()
    other.CopyFrom(made)
    table = next(a for n in other.graph.node for a in n.attribute if a.name == "values_strings")
    table.strings[:] = [b"d", b"c", b"b", b"a"]
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert verify(made, result.model, {"x": x}).ok
    found = verify(made, other, {"x": x})
    assert not found.ok
    assert "output label holds other values" in found.complaint()


def test_maps_and_sequences_are_compared_part_by_part() -> None:
    nodes = [
        node("ReduceMean", "z", "mean", axes=[2, 3], keepdims=0),
        node("SplitToSequence", "z lengths", "pieces", axis=3),
    ]
    made = conv_and(*nodes, weights={"lengths": np.array([1, 5])})
    made.graph.node.append(
        helper.make_node("ZipMap", ["mean"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[3, 5, 7, 9])
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    made.graph.output.append(helper.make_value_info("scores", helper.make_sequence_type_proto(kind)))
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    made.graph.output.append(helper.make_value_info("pieces", helper.make_sequence_type_proto(floats)))
    report = fold_model(made).report
    assert report.verification.ok
    assert len(report.folded) == 1
    named = [a.output for a in report.verification.runs[1].outputs]
    assert {"z", "scores.1.9", "pieces.0", "pieces.1"} <= set(named)


# --- what nobody can run, and what gives something else each time


def test_what_neither_can_run_is_no_bug() -> None:
    nodes = [
        node("Conv", "x w", "y"),
        helper.make_node("BatchNormalization", ["y", *list(norm_weights(4))], ["b"], name="bn", is_test=1),
        helper.make_node("Dropout", ["b"], ["z"], is_test=1),
    ]
    made = model(nodes, {"x": [2, 3, 8, 8]}, ["z"], CONV, opset=6, ir_version=3, dtype="float32")
    with pytest.raises(RunError, match="Pass --no-verify"):
        fold_model(made)
    assert len(fold_model(made, verify=False).report.folded) == 1


def test_a_range_without_steps_is_no_bug() -> None:
    made = conv_and(node("Range", "none none none", "r"), weights={"none": np.array(0)})
    made.graph.output.append(helper.make_tensor_value_info("r", TensorProto.INT64, [None]))
    assert len(fold_model(made, verify=False).report.folded) == 1


def random_model() -> ModelProto:
    """What nobody reads goes, and with it the numbers that are drawn change."""
    noise = [node("RandomNormalLike", "z", "n"), node("Add", "z n", "s")]
    made = conv_and(*noise, outputs=["s"])
    made.graph.node.insert(0, node("Relu", "x", "unread"))
    return made


def test_a_model_that_draws_random_numbers_is_said_to_do_so() -> None:
    with pytest.raises(VerificationError, match="does not give the same twice"):
        fold_model(random_model())


def test_where_nothing_folds_nothing_is_refused() -> None:
    report = fold_model(random_model(), keep=["bn"]).report
    assert report.verification is None
    assert any("does not give the same twice" in note for note in report.notes)
    assert len(report.kept) == 1


# --- values of one dimension, weights in files


@pytest.mark.parametrize("channels", [1, 3])
def test_a_norm_on_one_dimension_has_one_channel(channels: int) -> None:
    nodes = [norm("x", "a"), node("Unsqueeze", "a axes", "b"), node("Gemm", "b w", "z")]
    weights = {"axes": np.array([1]), "w": weight(1, 4), **norm_weights(channels)}
    made = model(nodes, {"x": [N]}, ["z"], weights, dtype="float32", opset=17)
    if channels == 1:
        assert count(by_runtime(made)[0]) == 0
    else:
        assert "several channels" in reasons(fold_model(made, verify=False).report)[0]


def test_external_data_of_a_constant_node(tmp_path: Path) -> None:
    made = conv_and()
    stored = next(tensor for tensor in made.graph.initializer if tensor.name == "w")
    (tmp_path / "w.bin").write_bytes(stored.raw_data)
    made.graph.initializer.remove(stored)
    outside = TensorProto(name="w", dims=stored.dims, data_type=stored.data_type)
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="w.bin")
    made.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=outside))
    (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    report = fold_file(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert report.verification.ok
    assert len(report.folded) == 1
    (tmp_path / "w.bin").unlink()
    assert fold_file(tmp_path / "b.onnx", force=True).verification.ok
