"""Norms beside a layer fold also where shape inference knows nothing of what that layer is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

from bntool.fold_onnx import fold_model
from bntool.result import FoldReport
from tests.graphs.onnx_models import EXACT, by_runtime, count, folded, model, norm, norm_weights, weight
from tests.graphs.test_onnx_fold import N, node, reasons


def without_shape(made: ModelProto, *names: str) -> ModelProto:
    """The same model, of whose inputs nothing is said but their element type."""
    for value in made.graph.input:
        if value.name in names or not names:
            value.type.tensor_type.ClearField("shape")
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    return made


def judged(made: ModelProto, **given: NDArray[Any]) -> tuple[ModelProto, FoldReport]:
    result = fold_model(made, verify=False)
    pairs = zip(*(ReferenceEvaluator(m).run(None, given) for m in (made, result.model)), strict=True)
    assert max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs) < EXACT
    return result.model, result.report


LAYERS = {"Conv": (4, 3, 2, 2), "ConvTranspose": (3, 4, 2, 2), "Gemm": (3, 4)}


@pytest.mark.parametrize(("between", "left"), [("Identity", 0), ("Sigmoid", 1)])
@pytest.mark.parametrize("op", LAYERS)
def test_a_norm_behind_a_layer_whose_input_has_no_shape(op: str, between: str, left: int) -> None:
    """Of two norms behind what takes no map, one takes the other's."""
    given = weight(*((7, 3) if op == "Gemm" else (2, 3, 5, 5)))
    nodes = [
        node(op, "x w", "y"), norm("y", "a"), node(between, "a", "b"), norm("b", "c", "second"),
        norm("c", "d", "third"), node("Tanh", "d", "z"),
    ]  # fmt: skip
    weights = {"w": weight(*LAYERS[op])}
    for seed, prefix in enumerate(("bn", "second", "third")):
        weights |= norm_weights(4, prefix, seed)
    made = without_shape(model(nodes, {"x": given.shape}, ["z"], weights))
    assert count(judged(made, x=given)[0]) == left


def test_a_norm_behind_an_embedding_in_a_place_of_known_rank() -> None:
    nodes = [node("Compress", "t keep", "p", axis=0), node("Gather", "w p", "y"), norm("y", "z")]
    made = model(nodes[1:], {"p": [N]}, ["z"], {"w": weight(5, 4), **norm_weights(4)})
    made.graph.node.insert(0, nodes[0])
    del made.graph.input[:]
    made.graph.input.append(helper.make_tensor_value_info("t", 7, [N]))
    made.graph.input.append(helper.make_tensor_value_info("keep", 9, [None]))
    keep = np.array([True, False, True])
    assert count(judged(made, t=np.array([4, 0, 2]), keep=keep)[0]) == 0


def test_a_norm_in_front_of_a_layer_whose_input_has_no_shape() -> None:
    nodes = [norm("x", "a"), node("Conv", "a w", "z")]
    made = without_shape(
        model(nodes, {"x": [N, 3, 4, 4]}, ["z"], {"w": weight(4, 3, 2, 2), **norm_weights(3)})
    )
    proto, report = judged(made, x=weight(2, 3, 5, 5))
    assert count(proto) == 0
    assert report.folded[0].side == "before"


@pytest.mark.parametrize("opset", [11, 13, 15, 18])
def test_a_shape_that_is_read_and_given_back(opset: int) -> None:
    """What torch's older exporter writes for a GroupNorm over a batch of any size."""
    nodes = [
        node("Conv", "x v", "p"), node("Shape", "p", "size"), node("Reshape", "p groups", "q"),
        node("InstanceNormalization", "q one zero", "r"), node("Reshape", "r size", "s"),
        node("Tanh", "s", "t"), node("Transpose", "t", "u", perm=[0, 2, 3, 1]), node("MatMul", "u w", "y"),
        node("Transpose", "y", "a", perm=[0, 3, 1, 2]), norm("a", "z"),
    ]  # fmt: skip
    weights = {"v": weight(4, 3, 1, 1), "groups": np.array([0, 2, -1]), "w": weight(4, 6), **norm_weights(6)}
    weights |= {"one": np.ones(2), "zero": np.zeros(2)}
    options: dict[str, Any] = {"opset": opset, "ir_version": 6, "dtype": "float32"}
    made = model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights, **options)
    assert count(by_runtime(made)[0]) == 0


@pytest.mark.parametrize("handed_out", [False, True])
def test_a_group_norm_has_the_sizes_of_its_input(handed_out: bool) -> None:
    nodes = [
        node("Conv", "x v", "p"), node("GroupNormalization", "p s t", "q", num_groups=2),
        norm("q", "r"), node("Transpose", "r", "a", perm=[0, 2, 3, 1]), node("MatMul", "a w", "b"),
        node("Transpose", "b", "c", perm=[0, 3, 1, 2]), norm("c", "z", "last"),
    ]  # fmt: skip
    weights = {"v": weight(4, 3, 1, 1), "s": weight(4), "t": weight(4, seed=2), "w": weight(4, 6)}
    weights |= {**norm_weights(4), **norm_weights(6, "last")}
    outputs = ["q", "z"] if handed_out else ["z"]
    made = model(nodes, {"x": [N, 3, 4, 4]}, outputs, weights, opset=21)
    assert count(folded(made)[0]) == 0


def test_values_that_may_line_up_otherwise_take_no_map() -> None:
    """(2, 4, 3, 4) + (3, 4): channels to one norm are columns to the other."""
    nodes = [
        node("Conv", "x w", "p"), norm("b", "q"), node("Add", "p q", "r"), norm("r", "s", "sum"),
        node("Relu", "s", "t"), node("Conv", "t v", "z"),
    ]  # fmt: skip
    weights = {"w": weight(4, 3, 1, 1), "v": weight(2, 4, 1, 1), **norm_weights(4), **norm_weights(4, "sum")}
    made = model(nodes, {"x": [2, 3, 3, 4], "b": [3, 4]}, ["z"], weights)
    proto, report = judged(without_shape(made), x=weight(2, 3, 3, 4), b=weight(3, 4))
    assert count(proto) == 2
    assert any("Add (the ranks of its inputs are not known)" in reason for reason in reasons(report))


def test_a_rank_that_is_not_known_is_not_called_too_small() -> None:
    nodes = [node("Add", "x row", "y"), norm("y", "a"), node("Relu", "a", "b"), node("Conv", "b w", "z")]
    weights = {"row": weight(3, 1, 1), "w": weight(4, 3, 1, 1), **norm_weights(3)}
    made = without_shape(model(nodes, {"x": [N, 3, 4, 4]}, ["z"], weights))
    _, report = judged(made, x=weight(2, 3, 5, 5))
    assert "Add (the rank of its input is not known)" in reasons(report)[0]
