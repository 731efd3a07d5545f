"""Folds of ONNX models: each exact by the reference evaluator in float64, each refusal with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bntool.fold_onnx import fold_model
from tests.graphs.onnx_models import (
    EXACT,
    NEWEST,
    by_runtime,
    count,
    error,
    folded,
    model,
    norm,
    norm_weights,
    weight,
)

N = "batch"


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"node_{outputs.split()[0]}", **attrs)


def reasons(report: Any) -> list[str]:
    return [entry.reason for entry in report.kept]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "ins", "outs"), [(1, 4, 6), (2, 4, 6), (4, 4, 4)])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolution_then_norm(op: str, rank: int, groups: int, ins: int, outs: int) -> None:
    taps = (3,) * rank
    shape = (outs, ins // groups, *taps) if op == "Conv" else (ins, outs // groups, *taps)
    nodes = [node(op, "x w", "y", group=groups, pads=[1] * 2 * rank, strides=[2] * rank), norm("y", "z")]
    weights = {"w": weight(*shape), **norm_weights(outs)}
    dtype = "float32" if op == "ConvTranspose" else "float64"  # the evaluator has no groups for the former
    made = model(nodes, {"x": [N, ins, *(7,) * rank]}, ["z"], weights, dtype=dtype, opset=20)
    proto, report = folded(made) if dtype == "float64" else by_runtime(made)
    assert count(proto) == 0
    assert report.folded[0].side == "after"
    assert len(proto.graph.node) == 1


def test_a_bias_that_comes_out_zero_is_left_out() -> None:
    bn = norm_weights(4)
    bn["bn.bias"] = np.zeros(4)
    bn["bn.running_mean"] = weight(4)
    nodes = [node("Conv", "x w b", "y"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), "b": bn["bn.running_mean"], **bn}
    proto, _ = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert len(proto.graph.node[0].input) == 2


def test_a_norm_that_takes_another_ones_map_has_its_bias_also_when_it_is_zero() -> None:
    bn = norm_weights(4)
    bn["bn.bias"], bn["bn.running_mean"] = np.zeros(4), np.zeros(4)
    made = model([norm("x", "y"), norm("y", "z")], {"x": [N, 4, 5]}, ["z"], bn)
    assert count(folded(made)[0]) == 1


def test_what_nobody_sees_is_no_reader() -> None:
    nodes = [node("Conv", "x w", "y"), node("Relu", "y", "unread"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert len(report.folded) == 1
    assert len(proto.graph.node) == 1


@pytest.mark.parametrize("other", ["x", "w"])
def test_inputs_and_tensors_that_are_outputs_too(other: str) -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    shape = [N, 3, 4, 4] if other == "x" else [4, 3, 1, 1]
    made.graph.output.append(helper.make_tensor_value_info(other, 11, shape))
    result = fold_model(made, verify=False)
    assert len(result.report.folded) == 1
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert other == "x" or np.array_equal(kept["w"], weight(4, 3, 1, 1))


@pytest.mark.parametrize("outputs", [[], ["", "seen"]])
def test_a_node_may_leave_outputs_out(outputs: list[str]) -> None:
    """One that has none, such as an assertion, reads what it reads all the same, and stays."""
    nodes = [
        node("Conv", "x w", "y"),
        helper.make_node("Look", ["y"], outputs, domain="elsewhere"),
        norm("y", "z"),
    ]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    made = model([nodes[0], nodes[2]], {"x": [N, 3, 4, 4]}, ["z"], weights)
    made.graph.node.insert(1, nodes[1])
    made.graph.output.extend(helper.make_tensor_value_info(name, 11, [N]) for name in outputs if name)
    made.opset_import.append(helper.make_opsetid("elsewhere", 1))
    result = fold_model(made, verify=False)
    assert "feeds 2 places" in reasons(result.report)[0]
    assert count(result.model, "Look") == 1


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [(), (5,), (1, 5), (1,)])
def test_gemm_with_factors(trans_a: int, trans_b: int, bias: tuple[int, ...]) -> None:
    shape = [7, 3] if trans_a else [3, 7]  # fixed: a transposed input has its batch on dim 1
    nodes = [node("Gemm", "x w b", "y", alpha=0.5, beta=-2.0, transA=trans_a, transB=trans_b), norm("y", "z")]
    weights = {"w": weight(5, 7) if trans_b else weight(7, 5), "b": weight(*bias), **norm_weights(5)}
    proto, report = folded(model(nodes, {"x": shape}, ["z"], weights))
    assert len(report.folded) == 1
    assert len(proto.graph.node) == 1


def test_gemm_whose_c_differs_between_rows_keeps_its_norm() -> None:
    nodes = [node("Gemm", "x w b", "y"), norm("y", "z")]
    weights = {"w": weight(7, 5), "b": weight(3, 5), **norm_weights(5)}
    _, report = folded(model(nodes, {"x": [3, 7]}, ["z"], weights))
    assert "its C is not one constant per column" in reasons(report)[0]


@pytest.mark.parametrize("with_add", [False, True])
def test_matmul_flattened_to_its_norm(with_add: bool) -> None:
    """(N, L, K) @ (K, C), rows flattened so that the norm sees features as channels (LeViT)."""
    add = [node("Add", "y0 b", "y")] if with_add else [node("Identity", "y0", "y")]
    nodes = [
        node("MatMul", "x w", "y0"),
        *add,
        node("Reshape", "y flat", "f"),
        norm("f", "g"),
        node("Reshape", "g back", "z"),
    ]
    shapes = {"flat": np.array([-1, 5]), "back": np.array([-1, 4, 5])}
    weights = {"w": weight(3, 5), "b": weight(5), **norm_weights(5), **shapes}
    if not with_add:
        weights.pop("b")
    proto, report = folded(model(nodes, {"x": [N, 4, 3]}, ["z"], weights))
    assert len(report.folded) == 1
    assert count(proto, "Add") == 1


def test_a_norm_on_the_positions_of_a_matmul_is_not_folded_into_its_features() -> None:
    """(N, C, L) with L equal to the features: channels are positions there. Into an Add it may still go."""
    nodes = [node("MatMul", "x w", "y"), norm("y", "z")]
    weights = {"w": weight(4, 4), **norm_weights(4)}
    proto, report = folded(model(nodes, {"x": [N, 4, 4]}, ["z"], weights))
    assert count(proto) == 1
    assert "channels" in reasons(report)[0]


def test_down_into_an_unpadded_convolution_and_a_gemm() -> None:
    nodes = [
        node("Relu", "x", "r"),
        norm("r", "a"),
        node("Conv", "a w", "c"),
        node("Relu", "c", "s"),
        norm("s", "d", "bn2"),
        node("GlobalAveragePool", "d", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f v", "z"),
    ]
    weights = {"w": weight(4, 3, 3, 3), "v": weight(4, 2), **norm_weights(3), **norm_weights(4, "bn2")}
    proto, report = folded(model(nodes, {"x": [N, 3, 6, 6]}, ["z"], weights))
    assert [entry.side for entry in report.folded] == ["before", "before"]
    assert count(proto) == 0


def test_zero_padding_hides_a_shift_but_not_a_scale() -> None:
    nodes = [node("Relu", "x", "r"), norm("r", "a"), node("Conv", "a w", "z", pads=[1, 1, 1, 1])]
    weights = {"w": weight(4, 3, 3, 3), **norm_weights(3)}
    _, report = folded(model(nodes, {"x": [N, 3, 6, 6]}, ["z"], weights))
    assert "zero padding" in reasons(report)[0]
    weights["bn.bias"] = weights["bn.running_mean"] = np.zeros(3)
    _, report = folded(model(nodes, {"x": [N, 3, 6, 6]}, ["z"], weights))
    assert len(report.folded) == 1


@pytest.mark.parametrize(("taps", "goes"), [(1, True), (3, False)])
def test_what_pads_by_itself_pads_nothing_for_one_tap(taps: int, goes: bool) -> None:
    nodes = [norm("x", "y"), node("Conv", "y w", "z", auto_pad="SAME_UPPER", strides=[2, 2])]
    weights = {"w": weight(4, 3, taps, taps), **norm_weights(3)}
    made = model(nodes, {"x": [N, 3, 5, 6]}, ["z"], weights, dtype="float32", opset=20)
    assert bool(by_runtime(made)[1].folded) == goes


@pytest.mark.parametrize(("taps", "stride"), [(1, 1), (2, 2), (3, 1), (1, 2)])
def test_only_a_pointwise_transposed_convolution_takes_a_shift_in_front(taps: int, stride: int) -> None:
    """Elsewhere its places get different numbers of taps, or different ones; a scale is always exact."""
    after = node("ConvTranspose", "a w", "z", strides=[stride] * 2)
    nodes = [node("Relu", "x", "r"), norm("r", "a"), after]
    weights = {"w": weight(3, 4, taps, taps), **norm_weights(3)}
    shape = {"x": [N, 3, 5, 5]}
    _, report = by_runtime(model(nodes, shape, ["z"], weights, dtype="float32", opset=20))
    assert bool(report.folded) == (taps == stride == 1)
    weights["bn.bias"] = weights["bn.running_mean"] = np.zeros(3)
    _, report = by_runtime(model(nodes, shape, ["z"], weights, dtype="float32", opset=20))
    assert report.folded


def test_through_concatenation_sum_pools_and_padding() -> None:
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "x w2", "b"),
        node("Concat", "a b", "c", axis=1),
        node("AveragePool", "c", "p", kernel_shape=[2, 2]),
        norm("p", "d"),
        node("Relu", "d", "e"),
        node("Conv", "e w3", "f"),
        node("Conv", "e w4", "g"),
        node("Add", "f g", "h"),
        norm("h", "z", "bn2"),
    ]
    weights = {"w1": weight(2, 3, 1, 1), "w2": weight(4, 3, 1, 1), "w3": weight(5, 6, 1, 1)}
    weights |= {"w4": weight(5, 6, 1, 1, seed=9), **norm_weights(6), **norm_weights(5, "bn2")}
    proto, report = folded(model(nodes, {"x": [N, 3, 6, 6]}, ["z"], weights))
    assert len(report.folded) == 2
    assert count(proto) == 0


@pytest.mark.parametrize("opset", [9, 11, 13, 18, NEWEST])
def test_through_data_movement_in_every_form_it_had(opset: int) -> None:
    """Channel shuffle, pixel shuffle, slices and splits between a convolution and its norm."""
    old = opset < 13
    squeeze = node("Unsqueeze", "s", "u", axes=[2]) if old else node("Unsqueeze", "s two", "u")
    nodes = [
        node("Conv", "x w", "y"),
        node("Reshape", "y five", "v"),
        node("Transpose", "v", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t four", "s"),
        squeeze,
        node("Squeeze", "u", "q", axes=[2]) if old else node("Squeeze", "u two", "q"),
        node("Gather", "q turn", "c", axis=1),
        node("DepthToSpace", "c", "d", blocksize=2),
        norm("d", "z"),
    ]
    weights = {"w": weight(8, 3, 1, 1), "two": np.array([2]), **norm_weights(2)}
    weights |= {
        "five": np.array([0, 2, 4, 4, 4]),
        "four": np.array([0, 8, 4, 4]),
        "turn": np.arange(8)[::-1].copy(),
    }
    weights = {n: w for n, w in weights.items() if n != "two" or not old}
    proto, report = by_runtime(
        model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, opset=opset, dtype="float32", ir_version=4)
    )
    assert len(report.folded) == 1
    assert count(proto) == 0


@pytest.mark.parametrize("opset", range(9, NEWEST + 1))
def test_every_opset(opset: int) -> None:
    attrs = {"training_mode": 0} if opset >= 14 else {}
    nodes = [node("Conv", "x w", "y"), norm("y", "z", **attrs), node("Relu", "z", "r")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    made = model(
        nodes,
        {"x": [N, 3, 4, 4]},
        ["r"],
        weights,
        opset=opset,
        dtype="float32",
        ir_version=min(10, 3 + opset // 5),
    )
    proto, report = by_runtime(made)
    assert len(report.folded) == 1
    assert count(proto) == 0


@pytest.mark.parametrize("opset", [1, 6])
def test_before_opset_7_a_norm_trains_unless_it_says_that_it_does_not(opset: int) -> None:
    attrs = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    for is_test, kept in ((0, 1), (1, 0)):
        nodes = [node("Conv", "x w", "y"), norm("y", "z", is_test=is_test, **attrs)]
        made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, opset=opset, ir_version=3)
        report = fold_model(made, verify=False).report
        assert len(report.kept) == kept


def test_training_mode_stays_with_a_reason() -> None:
    bn = helper.make_node(
        "BatchNormalization",
        ["y", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
        ["z", "m", "v"],
        training_mode=1,
    )
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    _, report = folded(model([node("Conv", "x w", "y"), bn], {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert "train mode" in reasons(report)[0]


def test_statistics_per_element_stay_with_a_reason() -> None:
    bn = {name: np.abs(weight(3, 4, 4, seed=i)) for i, name in enumerate(norm_weights(1))}
    nodes = [node("Relu", "x", "y"), norm("y", "z", spatial=0)]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], bn, opset=7, ir_version=3)
    assert "spatial = 0" in reasons(fold_model(made, verify=False).report)[0]


def test_shared_initialisers_get_a_tensor_per_use() -> None:
    """One weight, two norms that differ, and a reader that wants it as it is."""
    nodes = [
        node("Conv", "x w", "y1"),
        node("Conv", "x w", "y2"),
        norm("y1", "z1"),
        norm("y2", "z2", "other"),
        node("ReduceMean", "w", "m", keepdims=0),
        node("Add", "z1 z2", "a"),
        node("Add", "a m", "z"),
    ]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4), **norm_weights(4, "other", seed=5)}
    proto, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert len(report.folded) == 2
    names = [t.name for t in proto.graph.initializer]
    assert len(names) == len(set(names))
    assert "w" in names


def test_equal_calls_of_one_layer_share_what_they_become() -> None:
    nodes = [node("Conv", "a w", "y1"), norm("y1", "z1"), node("Conv", "b w", "y2"), norm("y2", "z2")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto, _ = folded(model(nodes, {"a": [N, 3, 4, 4], "b": [N, 3, 4, 4]}, ["z1", "z2"], weights))
    assert len(proto.graph.initializer) == 2
    assert proto.graph.node[0].input[1:] == proto.graph.node[1].input[1:]


TIED: dict[str, tuple[list[NodeProto], list[int], list[int]]] = {
    "rows and columns": (
        [
            node("Gemm", "x w", "a"),
            norm("a", "b"),
            node("Relu", "b", "c"),
            node("Gemm", "c w", "d", transB=1),
        ],
        [4],
        [4, 4],
    ),
    "behind and in front": (
        [
            node("Conv", "x w", "a"),
            norm("a", "b"),
            node("Relu", "b", "r"),
            norm("r", "c"),
            node("Conv", "c w", "d"),
        ],
        [4, 5, 5],
        [4, 4, 1, 1],
    ),
    "encoder and decoder": (
        [node("Conv", "x w", "a"), norm("a", "b"), node("Relu", "b", "c"), node("ConvTranspose", "c w", "d")],
        [4, 5, 5],
        [4, 4, 2, 2],
    ),
}


@pytest.mark.parametrize("kind", TIED)
def test_one_weight_read_in_two_ways_becomes_two(kind: str) -> None:
    """The norms are equal, so that the same scale goes along one dimension here and another there."""
    nodes, shape, weights = TIED[kind]
    ends = "d"
    if kind != "behind and in front":
        nodes, ends = [*nodes, norm("d", "e")], "e"
    made = model(nodes, {"x": [N, *shape]}, [ends], {"w": weight(*weights), **norm_weights(4)})
    proto, report = folded(made)
    assert len(report.folded) == 2
    assert count(proto) == 0


def test_equal_new_biases_of_two_dtypes_are_two() -> None:
    """Both layers come without a bias, and both norms have the same statistics."""
    bn = {name: values.astype("float32") for name, values in norm_weights(4).items()}
    wide = {name.replace("bn.", "wide."): values.astype("float64") for name, values in bn.items()}
    nodes = [
        node("Gemm", "x w", "a"),
        norm("a", "b"),
        node("Relu", "b", "c"),
        node("Cast", "c", "f", to=TensorProto.DOUBLE),
        node("Gemm", "f w_wide", "g"),
        norm("g", "h", "wide"),
    ]
    stored = {"w": weight(4, 4).astype("float32"), "w_wide": weight(4, 4), **bn, **wide}
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [N, 4])],
            [helper.make_tensor_value_info("h", TensorProto.DOUBLE, [N, 4])],
            [numpy_helper.from_array(values, name) for name, values in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=8,
    )
    proto, report = by_runtime(made)
    assert len(report.folded) == 2
    assert {t.data_type for t in proto.graph.initializer if "bias" in t.name} == {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
    }


def test_new_names_collide_with_nothing() -> None:
    nodes = [node("Conv", "w_folded w", "w_bias_folded"), norm("w_bias_folded", "w_folded_1")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    proto, _ = folded(model(nodes, {"w_folded": [N, 3, 4, 4]}, ["w_folded_1"], weights))
    assert count(proto) == 0


def test_a_second_reader_and_an_output_keep_the_norm() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z"), node("Relu", "y", "r")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    _, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z", "r"], weights))
    assert "feeds 2 places" in reasons(report)[0]
    _, report = folded(model(nodes[:2], {"x": [N, 3, 4, 4]}, ["z", "y"], weights))
    assert report.kept


def test_a_relu_between_blocks() -> None:
    nodes = [node("Conv", "x w", "y"), node("Relu", "y", "r"), norm("r", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    _, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert "activation" in reasons(report)[0]


def test_an_output_keeps_its_name_when_its_norm_has_nothing_in_front() -> None:
    """norm -> norm, the second is the output and the first reads an input: an Identity or a rename."""
    nodes = [node("Conv", "x w", "y"), norm("y", "z"), norm("z", "out", "bn2")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4), **norm_weights(4, "bn2")}
    proto, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["out"], weights))
    assert len(report.folded) == 2
    assert [n.op_type for n in proto.graph.node] == ["Conv"]


@pytest.mark.parametrize(
    ("have", "want", "goes"), [("float32", "float64", True), ("float64", "float32", False)]
)
def test_only_an_exact_cast_lets_a_map_through(have: str, want: str, goes: bool) -> None:
    to = helper.np_dtype_to_tensor_dtype(np.dtype(want))
    bn = {n: w.astype(want) for n, w in norm_weights(4).items()}
    nodes = [node("Conv", "x w", "y"), node("Cast", "y", "c", to=to), norm("c", "z")]
    made = model(nodes[:2], {"x": [N, 3, 4, 4]}, ["c"], {"w": weight(4, 3, 1, 1)}, dtype=have)
    made.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in bn.items())
    made.graph.node.append(nodes[2])
    made.graph.output[0].name = "z"
    result = fold_model(made, verify=False)
    assert bool(result.report.folded) == goes
    assert error(made, result.model) < 1e-6  # the weights are float32


def test_weights_that_leave_the_range_of_half_precision_stay() -> None:
    bn = norm_weights(4)
    bn["bn.weight"] = np.array([1.0, 60000.0, 1.0, 1.0])
    bn["bn.running_var"] = np.full(4, 0.01)
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **bn}, dtype="float16")
    report = fold_model(made, verify=False).report
    assert "leave the range of float16" in reasons(report)[0]


def test_half_precision_rounds_once() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, dtype="float16")
    new = fold_model(made, verify=False).model
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    scale = stored["bn.weight"] / np.sqrt(stored["bn.running_var"] + 1e-5)
    got = numpy_helper.to_array(new.graph.initializer[0])
    eps = np.float64(np.float32(1e-5)) - 1e-5
    assert abs(eps) < 1e-12
    assert np.array_equal(got, (stored["w"] * scale[:, None, None, None]).astype(np.float16))


@pytest.mark.parametrize(
    ("leaf", "value", "said"),
    [("running_var", -1.0, "variance"), ("running_mean", np.nan, "NaN"), ("weight", np.inf, "infinite")],
)
def test_damaged_statistics_are_named(leaf: str, value: float, said: str) -> None:
    bn = norm_weights(4)
    bn[f"bn.{leaf}"][2] = value
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **bn})
    report = fold_model(made, verify=False).report
    assert said in reasons(report)[0]
    assert report.kept[0].name == "bn"


def test_keep_by_name() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    _, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights), keep=["b*"])
    assert reasons(report) == ["kept as asked"]


@pytest.mark.parametrize("split", [np.array(2), np.array([2, 2]), None])
def test_through_a_piece_of_a_sequence(split: Any) -> None:
    """torch's exporter writes a split as SplitToSequence and SequenceAt."""
    lengths = {} if split is None else {"lengths": split}
    names = ["y", *lengths]
    pieces = helper.make_node("SplitToSequence", names, ["s"], name="split", axis=1)
    width = 1 if split is None else 2
    nodes = [node("Conv", "x w", "y"), pieces, node("SequenceAt", "s one", "p"), norm("p", "z")]
    weights = {"w": weight(4, 3, 1, 1), "one": np.array(1), **norm_weights(width), **lengths}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, dtype="float32", opset=20)
    made.graph.value_info.append(helper.make_tensor_value_info("p", 1, [N, width, 4, 4]))
    proto, report = by_runtime(made)
    assert len(report.folded) == 1
    assert count(proto) == 0


def test_the_old_format_lists_initialisers_as_inputs() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, opset=9, ir_version=3, dtype="float32")
    proto, _ = by_runtime(made)
    assert {v.name for v in proto.graph.input} == {"x", *(t.name for t in proto.graph.initializer)}


def test_metadata_and_notes_survive() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    helper.set_model_props(made, {"author": "somebody"})
    made.doc_string, made.graph.node[0].doc_string = "a model", "a layer"
    made.graph.node[0].metadata_props.add(key="origin", value="here")
    proto, _ = folded(made)
    assert [(p.key, p.value) for p in proto.metadata_props] == [("author", "somebody")]
    assert (proto.doc_string, proto.graph.node[0].doc_string) == ("a model", "a layer")
    assert proto.graph.node[0].metadata_props[0].value == "here"


def test_the_oracle_sees_a_weight_that_is_one_per_cent_off() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    new = fold_model(made, verify=False).model
    assert error(made, new) < EXACT
    tensor = new.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
    assert error(made, new) > 1e-3
