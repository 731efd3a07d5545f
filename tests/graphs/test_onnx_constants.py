"""What of an ONNX graph is constant, and so may fold, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from bntool.fold_onnx import fold_model
from tests.graphs.onnx_models import by_runtime, count, folded, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import N, node, reasons


def test_constants_as_nodes_chains_and_initialisers() -> None:
    """What exporters write for a bias of zeros: CastLike, Shape and Expand around a constant."""
    w = weight(4, 3, 1, 1)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0.5, np.float32))),
        helper.make_node("Constant", [], ["neg"], value_ints=[-1]),
        node("CastLike", "zero x", "cast"),
        node("Shape", "w", "n", start=0, end=1),
        node("Expand", "cast n", "b"),
        node("Conv", "x w b", "y"),
        node("Sqrt", "half", "gamma"),
        node("Reshape", "rawmean neg", "mean"),
        helper.make_node("BatchNormalization", ["y", "gamma", "bn.bias", "mean", "bn.running_var"], ["z"]),
    ]
    bn = norm_weights(4)
    weights = {"half": np.abs(weight(4)), "rawmean": weight(2, 2), "bn.bias": bn["bn.bias"]}
    weights["bn.running_var"] = bn["bn.running_var"]
    proto, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert len(report.folded) == 1
    assert [n.op_type for n in proto.graph.node] == ["Conv"]
    assert len(proto.graph.initializer) == 2


def test_a_weight_that_is_normalised_in_the_graph() -> None:
    """Weight normalisation, by exporters that do not evaluate a ReduceL2."""
    length = node("ReduceL2", "v axes", "length")
    nodes = [length, node("Div", "v length", "u"), node("Mul", "g u", "w"), node("Conv", "x w", "y")]
    weights = {"v": weight(4, 3, 1, 1), "g": weight(4, 1, 1, 1), "axes": np.array([1, 2, 3])}
    made = model([*nodes, norm("y", "z")], {"x": [N, 3, 4, 4]}, ["z"], {**weights, **norm_weights(4)})
    assert [n.op_type for n in folded(made)[0].graph.node] == ["Conv"]


def test_the_sizes_of_an_expansion_of_which_some_stay() -> None:
    """`expand(-1, -1, 3, 3)`, as torch's older exporter writes it."""
    nodes = [
        node("Conv", "x w", "y"), node("GlobalAveragePool", "y", "p"), node("Shape", "wanted", "rank"),
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(np.array([1]))),
        node("Mul", "ones less", "marks"), node("Equal", "wanted marks", "stays"),
        node("Where", "stays ones wanted", "sizes"), node("Expand", "p sizes", "e"), norm("e", "z"),
    ]  # fmt: skip
    weights = {"w": weight(4, 3, 1, 1), "less": np.array(-1), "wanted": np.array([-1, -1, 3, 3])}
    assert not reasons(folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {**weights, **norm_weights(4)}))[1])


def test_a_computed_weight_is_no_constant() -> None:
    nodes = [node("Mul", "w s", "v"), node("Conv", "x v", "y"), norm("y", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    _, report = folded(model(nodes, {"x": [N, 3, 4, 4], "s": [4, 3, 1, 1]}, ["z"], weights))
    assert "its weight is computed" in reasons(report)[0]


def test_what_the_caller_may_override_is_no_constant() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    made.graph.input.append(helper.make_tensor_value_info("w", 11, [4, 3, 1, 1]))
    assert "its weight is an input of the model" in reasons(folded(made)[1])[0]


@pytest.mark.parametrize(
    ("port", "leaf"), [(1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var")]
)
def test_a_norm_that_the_caller_may_change_neither_goes_nor_takes_a_map(port: int, leaf: str) -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "a"), norm("a", "b", "fixed"), node("Relu", "b", "z")]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4), **norm_weights(4, "fixed", seed=2)}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights)
    made.graph.input.append(helper.make_tensor_value_info(f"bn.{leaf}", 11, [4]))
    _, report = folded(made)
    assert "is an input of the model, which a caller may set" in reasons(report)[0]
    assert len(report.kept) == 2


def test_statistics_that_the_graph_computes_keep_the_norm() -> None:
    norm_of_batch = helper.make_node(
        "BatchNormalization", ["y", "bn.weight", "bn.bias", "mean", "bn.running_var"], ["z"], name="bn"
    )
    nodes = [node("Conv", "x w", "y"), node("ReduceMean", "y axes", "mean", keepdims=0), norm_of_batch]
    weights = {"w": weight(4, 3, 1, 1), "axes": np.array([0, 2, 3]), **norm_weights(4)}
    _, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    assert reasons(report) == ["its running mean is computed in the graph"]


def test_before_opset_14_statistics_among_the_outputs_read_or_not_mean_train_mode() -> None:
    names = [f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    outputs = ["z", "mean", "var", "saved_mean", "saved_var"]
    nodes = [
        node("Conv", "x w", "y"),
        helper.make_node("BatchNormalization", ["y", *names], outputs, name="bn"),
    ]
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4)}
    options: dict[str, Any] = {"opset": 9, "ir_version": 4, "dtype": "float32"}
    read = model(nodes, {"x": [N, 3, 4, 4]}, ["z", "mean"], weights, **options)
    assert reasons(fold_model(read, verify=False).report) == ["the graph reads the statistics it computes"]
    proto, report = by_runtime(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, **options))
    assert "train mode" in reasons(report)[0]
    assert count(proto) == 1


def test_a_sparse_weight_stays_with_a_reason() -> None:
    nodes = [node("Conv", "x w", "y"), norm("y", "z")]
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 1, 1), **norm_weights(4)})
    made.graph.value_info.append(helper.make_tensor_value_info("y", 11, [N, 4, 4, 4]))
    dense = next(tensor for tensor in made.graph.initializer if tensor.name == "w")
    values = numpy_helper.from_array(numpy_helper.to_array(dense).reshape(-1), "w")
    places = numpy_helper.from_array(np.arange(12), "w_places")
    made.graph.initializer.remove(dense)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3, 1, 1]))
    report = fold_model(made, verify=False).report
    assert "its weight is a sparse tensor" in reasons(report)[0]


def test_negations_and_sums_of_any_number() -> None:
    nodes = [
        node("Conv", "x a", "p"), node("Conv", "x b", "q"), node("Conv", "x c", "r"),
        node("Sum", "p q r", "s"), node("Sum", "s", "t"), node("Neg", "t", "u"), norm("u", "z"),
    ]  # fmt: skip
    weights = {name: weight(4, 3, 1, 1, seed=place) for place, name in enumerate("abc")}
    proto, report = folded(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {**weights, **norm_weights(4)}))
    assert len(report.folded) == 1
    assert sum(len(layer.input) == 3 for layer in proto.graph.node if layer.op_type == "Conv") == 1


def test_before_opset_7_operands_line_up_in_another_way() -> None:
    """`axis` puts the four numbers on the channels; read as today they would be on the last dimension."""
    nodes = [
        node("Conv", "x w", "y"),
        node("Mul", "y m", "p", broadcast=1, axis=1),
        norm("p", "z", is_test=1),
    ]
    weights = {"w": weight(4, 3, 1, 1), "m": weight(4), **norm_weights(4)}
    made = model(nodes, {"x": [2, 3, 4, 4]}, ["z"], weights, opset=6, ir_version=3, dtype="float32")
    made.graph.value_info.append(helper.make_tensor_value_info("p", 1, [2, 4, 4, 4]))
    assert "before opset 7" in reasons(fold_model(made, verify=False).report)[0]


def test_sizes_that_nodes_compute_are_followed() -> None:
    """The widths of a Pad and the lengths of a Reshape, by operators that inference does not evaluate."""
    nodes = [
        node("Conv", "x w", "y"), node("Shape", "y", "sizes"), node("Gather", "sizes two", "height"),
        node("Mod", "height three", "rest"), node("Mul", "pattern rest", "widths"),
        node("Pad", "y widths", "p", mode="reflect"), node("Shape", "p", "padded"),
        node("Gather", "padded two", "wide"), node("Mul", "wide wide", "area"),
        node("Concat", "head area", "lengths", axis=0), node("Reshape", "p lengths", "r"), norm("r", "z"),
    ]  # fmt: skip
    numbers = {"two": [2], "three": [3], "pattern": [0, 0, 0, 0, 0, 0, 1, 1], "head": [2, 4]}
    weights = {"w": weight(4, 3, 1, 1), **norm_weights(4), **{n: np.array(v) for n, v in numbers.items()}}
    assert not reasons(folded(model(nodes, {"x": [2, 3, 4, 4]}, ["z"], weights))[1])
